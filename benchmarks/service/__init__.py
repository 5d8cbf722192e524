"""Programs that load, overload, confuse and break a running server; each starts one of its own."""

from __future__ import annotations

"""Processes that run models: the zygote that forks them, what they do, and the server's side of both."""

from __future__ import annotations

from __future__ import annotations

import pytest

from onward.compile.codegen.target import LANES, host_target


@pytest.fixture
def usable_lanes() -> list[int]:
    """The vector widths that this machine can run."""
    return [n for n in LANES if n <= host_target().lanes]

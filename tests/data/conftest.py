from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set, or a skip that says why."""

    def folder(name: str) -> Path:
        root = os.environ.get("ONWARD_DATA")
        if not root:
            pytest.skip("ONWARD_DATA is not set: the real data sets are not here")
        return Path(root) / name

    return folder

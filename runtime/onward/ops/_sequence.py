"""What the operators on sequences share. A sequence is a list of arrays, and is never changed in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from onward.errors import ShapeError

__all__ = ["place_in"]


def place_in(position: Any, count: int, places: int) -> int:
    """A position in a sequence of `count` tensors as a number from 0 on; the last one for None.

    Raises:
        ShapeError: it is not one of the places, or not one number.
    """
    if position is None:
        return places - 1
    if np.size(position) != 1:
        raise ShapeError(f"a position is one number, not {np.size(position)}")
    at = int(np.reshape(position, ()))
    if not -count <= at < places:
        raise ShapeError(f"position {at} is not in {-count}…{places - 1}, for a sequence of {count}")
    return at + count if at < 0 else at

from __future__ import annotations

from typing import Any

from onward.errors import ShapeError
from onward.graph import Op, op


@op("OptionalGetElement", since=(15, 18, 28))
class OptionalGetElement(Op):
    """What an optional holds."""

    def kernel(self, input: Any) -> tuple[Any]:
        if input is None:
            raise ShapeError("the optional is empty; ask OptionalHasElement first")
        return (input,)

from __future__ import annotations

from typing import Any

from onward.graph import Op, op


@op("Optional", since=(15, 28))
class Optional(Op):
    """Its operand, or nothing of the type that the attribute says."""

    type: Any = None

    def kernel(self, input: Any = None) -> tuple[Any]:
        return (input,)

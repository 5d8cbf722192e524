from __future__ import annotations

from onward.graph import Array, Op, op


@op("SequenceEmpty", since=11)
class SequenceEmpty(Op):
    """A sequence without tensors; `dtype` says which it may get."""

    dtype: int | None = None

    def kernel(self) -> tuple[list[Array]]:
        return ([],)

from __future__ import annotations

import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float


@op("FeatureVectorizer", domain=DOMAIN, since=1)
class FeatureVectorizer(Op):
    """The inputs side by side in float32, each cut or filled with zeros to its entry of inputdimensions."""

    inputdimensions: tuple[int, ...] | None = None

    def canonical(self, g: Builder, *X: ir.Value) -> ir.Value:
        widths = self.inputdimensions
        if not widths or len(widths) != len(X) or min(widths) < 0:
            raise InvalidModelError(f"inputdimensions {widths} does not fit {len(X)} inputs")
        parts = [_resized(g, x, width) for x, width in zip(X, widths, strict=True)]
        return parts[0] if len(parts) == 1 else g.Concat(*parts, axis=1)


def _resized(g: Builder, x: ir.Value, width: int) -> ir.Value:
    """[N, C], or [N] as one column, with another number of columns."""
    dims = dims_of(x)
    if dims is not None and len(dims) not in (1, 2):
        raise ShapeError(f"an input has {len(dims)} axes; each is [N, C] or [N]")
    x = as_float(g, x)
    if dims is not None and len(dims) == 1:
        x, dims = g.Unsqueeze(x, [1]), (dims[0], 1)
    have = dims[1] if dims is not None else None
    if have == width:
        return x
    if not isinstance(have, int):
        x, have = g.Pad(x, [0, 0, 0, width], 0.0), None
    if have is None or have > width:
        return g.Slice(x, [0], [width], [1])
    return g.Pad(x, [0, 0, 0, width - have], 0.0)

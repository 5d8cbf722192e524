from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, dims_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import normalize


@op("LayerNormalization", since=17, multiple_outputs=True)
class LayerNormalization(Op):
    """Y = (X − Mean) · InvStdDev · Scale + B, with the statistics over the axes from `axis` on.

    InvStdDev = 1 / sqrt(Var + epsilon). Statistics are computed in X's type, float32 for 16-bit floats, and
    given in the type that stash_type names.
    """

    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = int(ir.DataType.FLOAT)

    def kernel(self, X: Array, Scale: Array, B: Array | None = None) -> tuple[Array, Array, Array]:
        first = self.axis % X.ndim
        normalized, mean, inverse = normalize(X, tuple(range(first, X.ndim)), self.epsilon)
        y = normalized * Scale
        if B is not None:
            y = y + B
        stash = ir.DataType(self.stash_type).numpy()
        return y.astype(X.dtype, copy=False), mean.astype(stash), inverse.astype(stash)

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        Scale: ir.Value,
        B: ir.Value | None = None,
    ) -> requests.LayerNormalization:
        return requests.LayerNormalization(outputs, X, Scale, B, self.axis, self.epsilon)

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        X: ir.Value,
        Scale: ir.Value,
        B: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if any(d is not None for d in dy[1:]):
            raise UnsupportedError("Mean and InvStdDev of LayerNormalization have no gradient; use Y only")
        dims, scale_dims = dims_of(X), dims_of(Scale)
        if dims is None or scale_dims is None:
            raise UnsupportedError("the gradient of LayerNormalization needs the ranks of X and Scale")
        axis = self.axis % len(dims)
        if len(scale_dims) > len(dims) - axis:
            raise UnsupportedError(
                "the gradient of LayerNormalization needs a Scale of no more dimensions than are normalized"
            )
        grads = g.emit(
            "LayerNormalizationGrad",
            dy[0],
            X,
            Scale,
            domain=ONWARD_DOMAIN,
            outputs=3,
            axis=axis,
            epsilon=self.epsilon,
        )
        return grads if B is not None else grads[:2]

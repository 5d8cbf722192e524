from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, dtype_of, numpy_dtype, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float, transformed
from onward.ops.ml._trees import Forest, TreeNodes, features_of, numbers


@op("TreeEnsembleRegressor", domain=DOMAIN, since=(1, 3, 5))
class TreeEnsembleRegressor(TreeNodes):
    """Y = post_transform(aggregate of what the leaves say + base_values).

    A target that no leaf names has 0 before base_values are added. Of a single target only PROBIT is
    transformed, as in onnxruntime.
    """

    aggregate_function: str = "SUM"
    n_targets: int | None = None
    target_ids: tuple[int, ...] | None = None
    target_nodeids: tuple[int, ...] | None = None
    target_treeids: tuple[int, ...] | None = None
    target_weights: tuple[float, ...] | None = None
    target_weights_as_tensor: Any = None

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        if self.n_targets is None or self.n_targets < 1:
            raise InvalidModelError(f"n_targets is {self.n_targets}; a number above 0 is needed")
        weights = numbers("target_weights", self.target_weights, self.target_weights_as_tensor)
        ids = (self.target_treeids, self.target_nodeids, self.target_ids)
        forest = self.forest(ids, weights)
        base = self.base()
        x = features_of(g, X)
        scores = aggregated(g, x, forest, self.n_targets, self.aggregate_function, base)
        return transformed(g, as_float(g, scores), self.post_transform, self.n_targets)


def aggregated(
    g: Builder, x: ir.Value, forest: Forest, n_targets: int, aggregate: str, base: Array
) -> ir.Value:
    """What the trees say of each row in x's type, with base values.

    Raises:
        InvalidModelError: an unknown aggregate, or base values of which there are not n_targets.
    """
    if aggregate not in ("AVERAGE", "SUM", "MIN", "MAX"):
        raise InvalidModelError(f"aggregate_function {aggregate!r}: it is AVERAGE, SUM, MIN or MAX")
    if len(base) not in (0, n_targets):
        raise InvalidModelError(f"{len(base)} base_values for {n_targets} targets")
    scores = forest.scores(g, x, n_targets, "SUM" if aggregate == "AVERAGE" else aggregate)
    if aggregate == "AVERAGE":
        scores = g.Div(scores, float(len(forest.roots)))
    elif aggregate != "SUM":
        scores = g.Where(g.IsInf(scores), 0.0, scores)
    return scores if not len(base) else g.Add(scores, base.astype(numpy_dtype(dtype_of(x))))

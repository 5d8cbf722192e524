from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Builder, dtype_of, numpy_dtype, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import as_float, class_labels, named_labels, transformed, two_columns
from onward.ops.ml._trees import Forest, TreeNodes, features_of, numbers


@op("TreeEnsembleClassifier", domain=DOMAIN, since=(1, 3, 5))
class TreeEnsembleClassifier(TreeNodes):
    """Labels and scores of the sums of what the leaves say, with base_values.

    Y is the class with the highest score among those that some leaf named. Where leaves name only one of two
    classes, Y is the second where that score is above 0, or above 0.5 if no weight is negative; if it is the
    first that they name, Z is made of that score z alone: [−z, z], [1 − z, z] if no weight is negative, or
    the logistic function of ∓z with LOGISTIC. One base value for two classes is the first one's.
    """

    class_ids: tuple[int, ...] | None = None
    class_nodeids: tuple[int, ...] | None = None
    class_treeids: tuple[int, ...] | None = None
    class_weights: tuple[float, ...] | None = None
    class_weights_as_tensor: Any = None
    classlabels_int64s: tuple[int, ...] | None = None
    classlabels_strings: tuple[str, ...] | None = None

    def canonical(self, g: Builder, X: ir.Value) -> tuple[ir.Value, ir.Value]:
        labels = class_labels(self.classlabels_int64s, self.classlabels_strings)
        count = len(labels)
        weights = numbers("class_weights", self.class_weights, self.class_weights_as_tensor)
        ids = (self.class_treeids, self.class_nodeids, self.class_ids)
        forest = self.forest(ids, weights)
        base = self.base()
        if len(base) not in (0, count) and (len(base), count) != (1, 2):
            raise InvalidModelError(f"{len(base)} base_values for {count} classes")
        named = sorted({int(i) for i in self.class_ids or ()})
        if named == [1] and len(base) == 1:
            raise UnsupportedError("one base value where leaves name the second of two classes only")
        x = features_of(g, X)
        scores = forest.scores(g, x, count, "SUM")
        if len(base):
            scores = g.Add(scores, np.resize([*base, 0], count).astype(numpy_dtype(dtype_of(x))))
        if count == 2 and len(named) == 1 and len(base) < 2:
            positive = bool(weights.size) and weights.min() >= 0
            score = g.Slice(scores, [named[0]], [named[0] + 1], [1])
            above = g.Squeeze(g.Greater(score, 0.5 if positive else 0.0), [1])
            chosen = g.Cast(above, to=int(ir.DataType.INT64))
            if named[0] == 0:
                pair = two_columns(g, as_float(g, score), self.post_transform, complement=positive)
                return named_labels(g, labels, chosen), pair
        else:
            judged = scores if len(base) == count else _those_named(g, x, forest, scores, count)
            chosen = g.ArgMax(judged, axis=1, keepdims=0)
        return named_labels(g, labels, chosen), transformed(
            g, as_float(g, scores), self.post_transform, count
        )


def _those_named(g: Builder, x: ir.Value, forest: Forest, scores: ir.Value, count: int) -> ir.Value:
    """The scores, −infinity for classes that no leaf which a row reaches has named."""
    has = np.zeros((len(forest.leaf_targets), count), bool)
    leaf, entry = np.nonzero(~np.isnan(forest.leaf_weights))
    has[leaf, forest.leaf_targets[leaf, entry]] = True
    trees = forest.tree_of_leaf
    always = np.zeros(count, bool)
    for tree in np.unique(trees):
        always |= has[trees == tree].all(0)
    if always.all():
        return scores
    lowest = g.const(-np.inf, dtype_of(x))
    if not (has.any(0) & ~always).any():
        return g.Where(g.const(always), scores, lowest)
    ones = replace(forest, leaf_weights=np.where(np.isnan(forest.leaf_weights), np.nan, 1.0))
    return g.Where(g.Greater(ones.scores(g, x, count, "MAX"), 0.0), scores, lowest)

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Op, dtype_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._common import TRANSFORMS, transformed
from onward.ops.ml._trees import Forest, features_of
from onward.ops.ml.tree_ensemble_regressor import aggregated

_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_EQ, _MEMBER = 4, 6


@op("TreeEnsemble", domain=DOMAIN, since=5)
class TreeEnsemble(Op):
    """Y = post_transform(aggregate of what the leaves say); 0 for a target that no leaf names."""

    aggregate_function: int = 1
    leaf_targetids: tuple[int, ...]
    leaf_weights: Any
    membership_values: Any = None
    n_targets: int | None = None
    nodes_falseleafs: tuple[int, ...]
    nodes_falsenodeids: tuple[int, ...]
    nodes_featureids: tuple[int, ...]
    nodes_hitrates: Any = None
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None
    nodes_modes: Any
    nodes_splits: Any
    nodes_trueleafs: tuple[int, ...]
    nodes_truenodeids: tuple[int, ...]
    post_transform: int = 0
    tree_roots: tuple[int, ...]

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        if not 0 <= self.aggregate_function < len(_AGGREGATES):
            raise InvalidModelError(f"aggregate_function {self.aggregate_function}: it is 0 to 3")
        if not 0 <= self.post_transform < len(TRANSFORMS):
            raise InvalidModelError(f"post_transform {self.post_transform}: it is 0 to 4")
        targets = self.n_targets if self.n_targets is not None else max(self.leaf_targetids, default=-1) + 1
        if targets < 1:
            raise InvalidModelError(f"n_targets is {targets}; a number above 0 is needed")
        x, aggregate = features_of(g, X), _AGGREGATES[self.aggregate_function]
        scores = aggregated(g, x, self._forest(), targets, aggregate, np.zeros(0))
        y = transformed(g, scores, TRANSFORMS[self.post_transform], targets)
        return y if dtype_of(y) == dtype_of(X) else g.Cast(y, to=int(dtype_of(X)))

    def _forest(self) -> Forest:
        modes = np.asarray(self.nodes_modes, np.int64).reshape(-1)
        splits = np.asarray(self.nodes_splits, np.float64).reshape(-1)
        count = len(modes)
        tracks = np.asarray(self.nodes_missing_value_tracks_true or np.zeros(count), np.int64)
        ids = [
            np.asarray(v, np.int64)
            for v in (
                self.nodes_featureids,
                self.nodes_truenodeids,
                self.nodes_falsenodeids,
                self.nodes_trueleafs,
                self.nodes_falseleafs,
            )
        ]
        if len({count, len(splits), len(tracks), *map(len, ids)}) != 1 or not count:
            raise InvalidModelError("the attributes nodes_… are of unequal lengths")
        weights = np.asarray(self.leaf_weights, np.float64).reshape(-1)
        leaves = np.asarray(self.leaf_targetids, np.int64)
        if len(weights) != len(leaves) or not len(leaves):
            raise InvalidModelError(f"{len(weights)} leaf_weights for {len(leaves)} leaf_targetids")
        if modes.min() < 0 or modes.max() > _MEMBER:
            raise InvalidModelError("nodes_modes are 0 to 6")
        features, *children = ids
        sets = self._sets(int((modes == _MEMBER).sum()))
        extra = sum(max(len(s) - 1, 0) for s in sets)
        roots = np.asarray(self.tree_roots, np.int64)
        _inside("tree_roots", roots, count)
        pairs = []
        for name, ids_, is_leaf in (
            ("nodes_truenodeids", children[0], children[2] != 0),
            ("nodes_falsenodeids", children[1], children[3] != 0),
        ):
            _inside(name, ids_[~is_leaf], count)
            _inside(name, ids_[is_leaf], len(leaves))
            pairs.append(np.where(is_leaf, ids_ + count + extra, ids_))
        forest = Forest(
            features,
            modes,
            splits,
            np.stack(pairs, 1),
            tracks,
            roots,
            leaves[:, None],
            weights[:, None],
            np.zeros(0, np.int64),
        )
        return _without_sets(forest, sets)

    def _sets(self, count: int) -> list[Array]:
        """The values of each node that asks for membership: NaN ends a set."""
        if not count:
            return []
        values = np.asarray(() if self.membership_values is None else self.membership_values, np.float64)
        values = values.reshape(-1)
        ends = np.flatnonzero(np.isnan(values))
        if len(ends) != count:
            raise InvalidModelError(f"membership_values has {len(ends)} sets; {count} nodes ask for one")
        return [part[~np.isnan(part)] for part in np.split(values, ends)[:count]]


def _without_sets(forest: Forest, sets: list[Array]) -> Forest:
    """Membership as a row of nodes that ask for one value each; an empty set is NaN, which none equals."""
    asking = np.flatnonzero(forest.modes == _MEMBER)
    if not len(asking):
        return forest
    lists = {name: list(getattr(forest, name)) for name in ("features", "modes", "splits", "missing")}
    children = [list(pair) for pair in forest.children]
    for node, values in zip(asking, sets, strict=True):
        true, false = children[node]
        wanted = list(values) or [np.nan]
        at = int(node)
        lists["modes"][at], lists["splits"][at] = _EQ, wanted[0]
        for value in wanted[1:]:
            following = len(children)
            children[at][1] = following
            for name, content in (("modes", _EQ), ("splits", value)):
                lists[name].append(content)
            for name in ("features", "missing"):
                lists[name].append(lists[name][node])
            children.append([true, false])
            at = following
    return Forest(
        np.asarray(lists["features"]),
        np.asarray(lists["modes"]),
        np.asarray(lists["splits"]),
        np.asarray(children),
        np.asarray(lists["missing"]),
        forest.roots,
        forest.leaf_targets,
        forest.leaf_weights,
        forest.tree_of_leaf,
    )


def _inside(name: str, ids: Array, end: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= end):
        raise InvalidModelError(f"{name} has a number outside [0, {end})")

"""Trees as `ai.onward.DecisionForest` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Array, Builder, Op, dtype_of, numpy_dtype
from onward.ops.ml._common import as_rows

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


@dataclass(frozen=True)
class Forest:
    """Nodes and leaves of all trees; a child or root from the number of nodes on is a leaf.

    Attributes:
        tree_of_leaf: the tree that each leaf is in, counted from 0; empty where nobody asks.
        leaf_targets, leaf_weights: [leaves, entries]; entries that a leaf does not have have the weight NaN.
    """

    features: Array
    modes: Array
    splits: Array
    children: Array
    missing: Array
    roots: Array
    leaf_targets: Array
    leaf_weights: Array
    tree_of_leaf: Array

    def scores(self, g: Builder, X: ir.Value, n_targets: int, aggregate: str) -> ir.Value:
        """What the leaves say of each row, in X's type.

        Raises:
            InvalidModelError: the nodes are not trees, or a leaf names a target that is not there.
        """
        if self.leaf_targets.size and not 0 <= self.leaf_targets.max() < n_targets:
            raise InvalidModelError(f"leaves name target {self.leaf_targets.max()} of {n_targets}")
        if (self.features.size and self.features.min() < 0) or self.leaf_targets.min(initial=0) < 0:
            raise InvalidModelError("a node's feature or a leaf's target is negative")
        dtype, absent = numpy_dtype(dtype_of(X)), np.isnan(self.leaf_weights)
        neutral = {"SUM": 0.0, "MIN": np.inf, "MAX": -np.inf}[aggregate]
        return g.onward.DecisionForest(
            X,
            self.features.astype(np.int32),
            self.modes.astype(np.int32),
            self.splits.astype(dtype),
            self.children.astype(np.int32),
            self.missing.astype(np.int32),
            self.roots.astype(np.int32),
            self.leaf_targets.astype(np.int32),
            np.where(absent, neutral, self.leaf_weights).astype(dtype),
            aggregate_function=aggregate,
            depth=self.depth(),
            n_targets=n_targets,
        )

    def depth(self) -> int:
        """Nodes on the longest way to a leaf.

        Raises:
            InvalidModelError: a way comes back to a node.
        """
        count, depth = len(self.features), 0
        at = np.unique(self.roots[self.roots < count])
        while len(at):
            depth += 1
            if depth > count:
                raise InvalidModelError("the nodes of a tree lead back to themselves")
            following = np.unique(self.children[at])
            at = following[following < count]
        return depth

    def with_dummy(self) -> Forest:
        """The same with a node at least, which trees that are leaves do without."""
        if len(self.features):
            return self
        one = np.zeros(1, np.int64)
        roots = self.roots + 1
        return replace(
            self,
            features=one,
            modes=one,
            splits=np.zeros(1),
            children=np.ones((1, 2), np.int64),
            missing=one,
            roots=roots,
        )


def features_of(g: Builder, X: ir.Value) -> ir.Value:
    """X as rows of float32 or float64."""
    rows = as_rows(g, X)
    return rows if dtype_of(X) == ir.DataType.DOUBLE else _float(g, rows)


def _float(g: Builder, X: ir.Value) -> ir.Value:
    return X if dtype_of(X) == ir.DataType.FLOAT else g.Cast(X, to=int(ir.DataType.FLOAT))


def numbers(name: str, plain: Sequence[float] | None, tensor: Any) -> Array:
    """The attribute `name` or `name`_as_tensor in float64; empty where neither is there.

    Raises:
        InvalidModelError: both are there.
    """
    if plain and tensor is not None and np.asarray(tensor).size:
        raise InvalidModelError(f"{name} and {name}_as_tensor are given; one is needed")
    return (
        np.asarray(plain or (), np.float64) if tensor is None else np.asarray(tensor, np.float64).reshape(-1)
    )


@dataclass(frozen=True, kw_only=True)
class TreeNodes(Op):
    """The attributes that TreeEnsembleClassifier and TreeEnsembleRegressor have in common."""

    base_values: tuple[float, ...] | None = None
    base_values_as_tensor: Any = None
    nodes_falsenodeids: tuple[int, ...] | None = None
    nodes_featureids: tuple[int, ...] | None = None
    nodes_hitrates: tuple[float, ...] | None = None
    nodes_hitrates_as_tensor: Any = None
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None
    nodes_modes: tuple[str, ...] | None = None
    nodes_nodeids: tuple[int, ...] | None = None
    nodes_treeids: tuple[int, ...] | None = None
    nodes_truenodeids: tuple[int, ...] | None = None
    nodes_values: tuple[float, ...] | None = None
    nodes_values_as_tensor: Any = None
    post_transform: str = "NONE"

    def base(self) -> Array:
        """The base values; empty where there are none."""
        return numbers("base_values", self.base_values, self.base_values_as_tensor)

    def forest(self, ids: tuple[Sequence[int] | None, ...], weights: Array) -> Forest:
        """The trees, given of each weight its tree, node and target.

        Raises:
            InvalidModelError: attributes of unequal lengths, or nodes that are not there.
        """
        splits = numbers("nodes_values", self.nodes_values, self.nodes_values_as_tensor)
        return _forest_of(self, splits, ids, weights)


def _forest_of(
    nodes: TreeNodes, splits: Array, ids: tuple[Sequence[int] | None, ...], weights: Array
) -> Forest:
    names = ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    parts = [np.asarray(getattr(nodes, f"nodes_{name}") or (), np.int64) for name in names]
    modes = nodes.nodes_modes or ()
    if len({len(modes), len(splits), *map(len, parts)}) != 1 or not len(modes):
        raise InvalidModelError(
            f"the attributes nodes_modes, nodes_values and {names} are of unequal lengths"
        )
    trees, numbers_, features, true, false = parts
    if unknown := set(modes) - {*_MODES, "LEAF"}:
        raise InvalidModelError(f"nodes_modes has {sorted(unknown)}; it may have {', '.join(_MODES)}, LEAF")
    order = np.lexsort((numbers_, trees))
    keys = np.stack([trees[order], numbers_[order]])
    if len(order) > 1 and not (np.diff(keys) != 0).any(0).all():
        raise InvalidModelError("two nodes of a tree have the same number")
    distinct, tree = np.unique(trees, return_inverse=True)

    def found(of: Array, number: Array, what: str) -> Array:
        """Positions of nodes by tree and number."""
        low = numbers_.min()
        span = max(numbers_.max(), number.max(initial=0)) - min(low, number.min(initial=low)) + 1
        base = min(low, number.min(initial=low))
        if len(distinct) * int(span) >= 1 << 62:
            raise InvalidModelError("nodes_nodeids are too far apart")
        place = np.searchsorted(distinct, of)
        fits = (place < len(distinct)) & (distinct[np.minimum(place, len(distinct) - 1)] == of)
        have = tree[order] * span + (numbers_[order] - base)
        want = place * span + (number - base)
        at = np.minimum(np.searchsorted(have, want), len(have) - 1)
        if not (fits & (have[at] == want)).all():
            raise InvalidModelError(f"{what} names a node that is not there")
        return order[at]

    leaf = np.asarray([mode == "LEAF" for mode in modes])
    inner = np.flatnonzero(~leaf)
    position = np.empty(len(modes), np.int64)
    position[inner] = np.arange(len(inner))
    position[leaf] = len(inner) + np.arange(leaf.sum())
    of = trees[inner]
    children = np.stack(
        [
            position[found(of, true[inner], "nodes_truenodeids")],
            position[found(of, false[inner], "nodes_falsenodeids")],
        ],
        1,
    ).reshape(-1, 2)
    first = np.unique(tree, return_index=True)[1]
    roots = position[np.sort(first)]
    tracks = np.asarray(nodes.nodes_missing_value_tracks_true or np.zeros(len(modes)), np.int64)
    if len(tracks) != len(modes):
        raise InvalidModelError("nodes_missing_value_tracks_true has another length than nodes_modes")
    owner, number, target = (np.asarray(i or (), np.int64) for i in ids)
    if len({len(owner), len(number), len(target), len(weights)}) != 1:
        raise InvalidModelError("trees, nodes, targets and weights of leaves are of unequal lengths")
    place = position[found(owner, number, "the node of a weight")] - len(inner)
    kept = place >= 0
    entries = _entries(place[kept], target[kept], weights[kept], int(leaf.sum()))
    return Forest(
        features[inner],
        np.asarray([_MODES.index(modes[i]) for i in inner], np.int64),
        splits[inner],
        children,
        tracks[inner],
        roots,
        *entries,
        tree[leaf],
    ).with_dummy()


def _entries(leaf: Array, target: Array, weight: Array, leaves: int) -> tuple[Array, Array]:
    """Targets and weights of each leaf as rows of equal length."""
    order = np.argsort(leaf, kind="stable")
    counts = np.bincount(leaf, minlength=max(leaves, 1))
    rank = np.arange(len(leaf)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = max(leaves, 1), max(int(counts.max(initial=0)), 1)
    targets, weights = np.zeros(shape, np.int64), np.full(shape, np.nan)
    targets[leaf[order], rank] = target[order]
    weights[leaf[order], rank] = weight[order]
    return targets, weights

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of, require_shape

AGGREGATES = ("SUM", "MIN", "MAX")
_NEUTRAL = (0.0, math.inf, -math.inf)

_CELLS = 1 << 20
"""Rows times trees that the kernel follows at once."""


@op("DecisionForest", domain=ONWARD_DOMAIN, since=1)
class DecisionForest(Op):
    """What the leaves that each row reaches say of each target, [N, n_targets]: sum, least or largest.

    Inputs: X, [N, F]; of each node its feature, int32; its mode, int32, 0 to 5 where a row takes the first
    child at x ≤, <, ≥, >, = or ≠ split; its split, of X's type; its two children, int32, each a node, or from
    the number of nodes on a leaf; whether NaN takes the first child, int32; the trees' roots, numbered as
    children are; and of each leaf targets, int32, and weights, [leaves, entries]. A target that no leaf names
    has 0, infinity or −infinity. A row that is at no leaf after `depth` nodes is at the first.
    """

    aggregate_function: str = "SUM"
    depth: int
    n_targets: int

    def _aggregate(self) -> int:
        if self.aggregate_function not in AGGREGATES:
            raise InvalidModelError(
                f"aggregate_function {self.aggregate_function!r}: it is one of {', '.join(AGGREGATES)}"
            )
        return AGGREGATES.index(self.aggregate_function)

    def kernel(
        self,
        X: Array,
        nodes_featureids: Array,
        nodes_modes: Array,
        nodes_splits: Array,
        nodes_children: Array,
        nodes_missing_value_tracks_true: Array,
        tree_roots: Array,
        leaf_targetids: Array,
        leaf_weights: Array,
    ) -> Array:
        aggregate = self._aggregate()
        for name, array, wanted in (
            ("X", X, (None, None)),
            ("nodes_modes", nodes_modes, nodes_featureids.shape),
            ("nodes_splits", nodes_splits, nodes_featureids.shape),
            ("nodes_children", nodes_children, (*nodes_featureids.shape, 2)),
            ("nodes_missing_value_tracks_true", nodes_missing_value_tracks_true, nodes_featureids.shape),
            ("leaf_targetids", leaf_targetids, (None, None)),
            ("leaf_weights", leaf_weights, leaf_targetids.shape),
        ):
            require_shape(name, array, wanted)
        places = len(nodes_featureids) + len(leaf_targetids)
        _check("a feature", nodes_featureids, X.shape[1])
        _check("a child", nodes_children, places)
        _check("a root", tree_roots, places)
        _check("a target", leaf_targetids, self.n_targets)
        y = np.full((len(X), self.n_targets), _NEUTRAL[aggregate], leaf_weights.dtype)
        join = (np.add, np.minimum, np.maximum)[aggregate]
        step = max(1, _CELLS // max(1, len(tree_roots)))
        missing = nodes_missing_value_tracks_true != 0
        nodes = (nodes_featureids, nodes_modes, nodes_splits, nodes_children, missing)
        for start in range(0, len(X), step):
            leaves = self._leaves(X[start : start + step], nodes, tree_roots)
            rows = np.arange(start, start + len(leaves))
            for leaf in leaves.T:
                for entry in range(leaf_targetids.shape[1]):
                    at = rows, leaf_targetids[leaf, entry]
                    y[at] = join(y[at], leaf_weights[leaf, entry])
        return y

    def _leaves(self, X: Array, nodes: tuple[Array, Array, Array, Array, Array], roots: Array) -> Array:
        """The leaf that each row reaches in each tree."""
        features, modes, splits, children, missing = nodes
        count = len(features)
        at = np.broadcast_to(roots, (len(X), len(roots))).astype(np.int64)
        for _ in range(self.depth):
            inner = at < count
            if not inner.any():
                break
            node = np.where(inner, at, 0)
            x, split, mode = np.take_along_axis(X, features[node], 1), splits[node], modes[node]
            first = np.select(
                [mode == 0, mode == 1, mode == 2, mode == 3, mode == 4],
                [x <= split, x < split, x >= split, x > split, x == split],
                x != split,
            )
            first |= missing[node] & np.isnan(x)
            at = np.where(inner, children[node, np.where(first, 0, 1)], at)
        return np.maximum(at - count, 0)

    def infer(self, X: ir.Value, *forest: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        dims = dims_of(X)
        return [(dtype_of(forest[-1]), (None if dims is None else dims[0], self.n_targets))]

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        nodes_featureids: ir.Value,
        nodes_modes: ir.Value,
        nodes_splits: ir.Value,
        nodes_children: ir.Value,
        nodes_missing_value_tracks_true: ir.Value,
        tree_roots: ir.Value,
        leaf_targetids: ir.Value,
        leaf_weights: ir.Value,
    ) -> requests.Loop:
        nodes = static.shape(nodes_featureids)[0]
        places = nodes + static.shape(leaf_targetids)[0]
        return requests.Loop(
            (outputs[0],),
            (
                X,
                nodes_featureids,
                nodes_modes,
                nodes_splits,
                nodes_children,
                nodes_missing_value_tracks_true,
                tree_roots,
                leaf_targetids,
                leaf_weights,
            ),
            _rows,
            (self._aggregate(), self.depth),
            flops=static.shape(X)[0] * static.shape(tree_roots)[0] * self.depth,
            indices=(
                (nodes_featureids, static.shape(X)[1]),
                (nodes_children, places),
                (tree_roots, places),
                (leaf_targetids, self.n_targets),
            ),
            shapes=(
                (X, (None, None)),
                (nodes_featureids, (nodes,)),
                (nodes_modes, (nodes,)),
                (nodes_splits, (nodes,)),
                (nodes_children, (nodes, 2)),
                (nodes_missing_value_tracks_true, (nodes,)),
                (tree_roots, (None,)),
                (leaf_targetids, (None, None)),
                (leaf_weights, static.shape(leaf_targetids)),
            ),
        )

    def expand(
        self,
        g: Builder,
        X: ir.Value,
        nodes_featureids: ir.Value,
        nodes_modes: ir.Value,
        nodes_splits: ir.Value,
        nodes_children: ir.Value,
        nodes_missing_value_tracks_true: ir.Value,
        tree_roots: ir.Value,
        leaf_targetids: ir.Value,
        leaf_weights: ir.Value,
    ) -> ir.Value:
        rows, int64 = g.dim(X, 0), int(ir.DataType.INT64)
        count = g.Cast(g.Squeeze(g.dim(nodes_featureids, 0), [0]), to=int(ir.DataType.INT32))
        zero = g.const(0, np.int32)
        at = g.Expand(g.Unsqueeze(tree_roots, [0]), g.Concat(rows, g.dim(tree_roots, 0), axis=0))
        known = constant_of(nodes_modes)
        modes = range(6) if known is None else sorted({int(mode) for mode in known.reshape(-1)})
        for _ in range(self.depth):
            inner = g.Less(at, count)
            node = g.Where(inner, at, zero)
            feature = g.Cast(g.Gather(nodes_featureids, node), to=int64)
            x, split = g.GatherElements(X, feature, axis=1), g.Gather(nodes_splits, node)
            first = _compared(g, x, split, modes[-1])
            for mode in modes[:-1]:
                chosen = g.Equal(g.Gather(nodes_modes, node), g.const(mode, np.int32))
                # onnxruntime has no Where of booleans
                this = g.And(chosen, _compared(g, x, split, mode))
                first = g.Or(this, g.And(g.Not(chosen), first))
            missing = g.Cast(g.Gather(nodes_missing_value_tracks_true, node), to=int(ir.DataType.BOOL))
            first = g.Or(first, g.And(missing, g.IsNaN(x)))
            child = g.Gather(nodes_children, node)
            following = g.Where(first, g.Gather(child, 0, axis=2), g.Gather(child, 1, axis=2))
            at = g.Where(inner, following, at)
        leaf = g.Max(g.Sub(at, count), zero)
        wide = g.Concat(rows, [-1], axis=0)
        targets = g.Reshape(g.Cast(g.Gather(leaf_targetids, leaf), to=int64), wide)
        weights = g.Reshape(g.Gather(leaf_weights, leaf), wide)
        aggregate = self._aggregate()
        neutral = g.CastLike(_NEUTRAL[aggregate], leaf_weights)
        none = g.Expand(neutral, g.Concat(rows, [self.n_targets], axis=0))
        reduction = ("add", "min", "max")[aggregate]
        return g.ScatterElements(none, targets, weights, axis=1, reduction=reduction)


def _compared(g: Builder, x: ir.Value, split: ir.Value, mode: int) -> ir.Value:
    if mode in (4, 5):
        same = g.Equal(x, split)
        return same if mode == 4 else g.Not(same)
    names = ("LessOrEqual", "Less", "GreaterOrEqual", "Greater")
    return g.emit(names[mode], x, split)[0]


def _check(what: str, numbers: Array, end: int) -> None:
    if numbers.size and (numbers.min() < 0 or numbers.max() >= end):
        raise ShapeError(f"{what} is outside [0, {end}): {numbers.min()} to {numbers.max()}")


def _rows(
    thread: int,
    threads: int,
    y: Array,
    X: Array,
    features: Array,
    modes: Array,
    splits: Array,
    children: Array,
    missing: Array,
    roots: Array,
    targets: Array,
    weights: Array,
    aggregate: int,
    depth: int,
) -> None:
    """Rows are shared out."""
    rows, count = X.shape[0], features.shape[0]
    neutral = 0.0 if aggregate == 0 else math.inf if aggregate == 1 else -math.inf
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        for target in range(y.shape[1]):
            y[row, target] = neutral
        for tree in range(roots.shape[0]):
            at = int(roots[tree])
            for _ in range(depth):
                if at >= count:
                    break
                x, split, mode = X[row, features[at]], splits[at], modes[at]
                if mode == 0:
                    first = x <= split
                elif mode == 1:
                    first = x < split
                elif mode == 2:
                    first = x >= split
                elif mode == 3:
                    first = x > split
                elif mode == 4:
                    first = x == split
                else:
                    first = x != split
                if missing[at] != 0 and x != x:
                    first = True
                at = int(children[at, 0]) if first else int(children[at, 1])
            leaf = max(at - count, 0)
            for entry in range(targets.shape[1]):
                target, weight = targets[leaf, entry], weights[leaf, entry]
                if aggregate == 0:
                    y[row, target] += weight
                elif aggregate == 1:
                    y[row, target] = min(y[row, target], weight)
                else:
                    y[row, target] = max(y[row, target], weight)

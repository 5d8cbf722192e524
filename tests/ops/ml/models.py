"""Models of `ai.onnx.ml`: single nodes, random trees, and what fitted scikit-learn estimators come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onward.graph import Array

DOMAIN = "ai.onnx.ml"
INT64, FLOAT, STRING = TensorProto.INT64, TensorProto.FLOAT, TensorProto.STRING

Node = tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]


def model(
    nodes: Sequence[Node],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, int],
    version: int = 3,
    rows: str | None = "N",
) -> bytes:
    """A file of nodes of `ai.onnx.ml`; the first axis of an input of two is unknown."""
    protos = [
        helper.make_node(op_type, list(ins), list(outs), name=f"node{i}", domain=DOMAIN, **attributes)
        for i, (op_type, ins, outs, attributes) in enumerate(nodes)
    ]
    infos = []
    for name, x in inputs.items():
        kind = STRING if x.dtype == object else helper.np_dtype_to_tensor_dtype(x.dtype)
        shape = [rows, *x.shape[1:]] if x.ndim == 2 and rows else x.shape
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    outs = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    graph = helper.make_graph(protos, "g", infos, outs)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()


def random_trees(rng: np.random.Generator, trees: int, features: int, modes: Sequence[str]) -> dict[str, Any]:
    """The attributes nodes_… of random trees whose splits are often met exactly."""
    rows: list[tuple[Any, ...]] = []
    for tree in range(trees):
        nodes: list[list[Any]] = []

        def grow(depth: int, nodes: list[list[Any]] = nodes) -> int:
            at = len(nodes)
            nodes.append([])
            if depth == 0 or rng.random() < 0.2:
                nodes[at] = ["LEAF", 0, 0.0, 0, 0, 0]
            else:
                split = float(np.float32(rng.integers(-4, 5) / 4))
                kind, feature = str(rng.choice(modes)), int(rng.integers(features))
                missing = rng.random() < 0.5
                true, false = grow(depth - 1), grow(depth - 1)
                nodes[at] = [kind, feature, split, true, false, int(missing)]
            return at

        grow(4)
        order = rng.permutation(len(nodes) - 1) + 1  # nodes need not be in order, but the root is first
        for node in (0, *map(int, order)):
            rows.append((tree, node, *nodes[node]))
    columns = list(zip(*rows, strict=True))
    names = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids")
    found = {f"nodes_{name}": list(column) for name, column in zip(names, columns, strict=False)}
    return {**found, "nodes_missing_value_tracks_true": list(columns[7])}


def leaves(attributes: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Tree and node of every leaf."""
    return [
        (t, n)
        for t, n, mode in zip(
            attributes["nodes_treeids"], attributes["nodes_nodeids"], attributes["nodes_modes"], strict=True
        )
        if mode == "LEAF"
    ]


def fitted_trees(estimators: Sequence[Any], values: Sequence[Array]) -> tuple[dict[str, Any], list[Any]]:
    """The attributes nodes_… of scikit-learn's trees, and (tree, node, target, weight) of their leaves.

    Args:
        estimators: fitted trees.
        values: for each, what its nodes say of every target, [nodes, targets].
    """
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    columns: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    weights: list[Any] = []
    for t, (estimator, said) in enumerate(zip(estimators, values, strict=True)):
        tree = estimator.tree_
        for node in range(tree.node_count):
            leaf = tree.children_left[node] < 0
            # scikit-learn compares float32 data with float64 thresholds: x <= t is x <= t rounded down
            split = np.float32(tree.threshold[node])
            if split > tree.threshold[node]:
                split = np.nextafter(split, np.float32(-np.inf))
            entry = (
                t,
                node,
                0 if leaf else int(tree.feature[node]),
                "LEAF" if leaf else "BRANCH_LEQ",
                0.0 if leaf else float(split),
                0 if leaf else int(tree.children_left[node]),
                0 if leaf else int(tree.children_right[node]),
            )
            for column, content in zip(columns.values(), entry, strict=True):
                column.append(content)
            if leaf:
                weights += [(t, node, k, float(w)) for k, w in enumerate(said[node])]
    return columns, weights


def weighted(prefix: str, weights: Sequence[Any]) -> dict[str, Any]:
    """The attributes class_… or target_… of leaves' weights."""
    t, n, k, w = (list(column) for column in zip(*weights, strict=True))
    return {f"{prefix}_treeids": t, f"{prefix}_nodeids": n, f"{prefix}_ids": k, f"{prefix}_weights": w}


def tensor(content: Array) -> onnx.TensorProto:
    """An attribute's tensor."""
    return onnx.numpy_helper.from_array(content, "t")

"""Everything that keeps a model from being trained, found in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import onnx_ir as ir

from onward.autodiff import OPSET, MissingGradientsError, NoGradient, expand_gradients, training_step
from onward.errors import OnwardError, UnsupportedError
from onward.graph import bodies_of, dims_of, find, is_float
from onward.model import trainable_initializers
from onward.passes import in_float32
from onward.train.losses import MSE, CrossEntropy, Loss
from onward.train.optimizers import SGD
from onward.train.preparation import choose_parameters, prepare_model

__all__ = ["Obstacle", "training_obstacles"]

Kind: TypeAlias = Literal["operator", "gradient", "model"]

_REMEDIES: dict[str, str] = {
    "operator": "export the model with other operators or at another opset, cut it before these nodes, or "
    "register the operator",
    "gradient": "say shapes that the file leaves open, with Trainer(shapes=...); else freeze the "
    "parameters before these nodes, or cut the model behind them",
    "model": "change the model, or how it is exported",
}


@final
@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps a model from being trained.

    Attributes:
        kind: `operator`: it cannot be run; `gradient`: no gradient goes through it; `model`: else.
        node: the node's name; empty where it is about the whole model.
        operator: the operator, with its domain where that is not the standard's.
        opset: of the operator's domain in the model; 0 where it is about the whole model.
        place: the nodes whose bodies it is in, and which, from the outside; empty in the main graph.
        why: what is missing.
        remedy: what to do.
    """

    kind: Kind
    node: str
    operator: str
    opset: int
    place: str
    why: str
    remedy: str


def training_obstacles(model: ir.Model) -> tuple[Obstacle, ...]:
    """What keeps a model from being trained: every node, in bodies too.

    Training means all weights that floating-point outputs depend on, with cross-entropy for scores [N, C] and
    the squared error for other outputs.

    Args:
        model: as `onward.model.load` leaves it; it is not changed.
    """
    try:
        model = expand_gradients(model)
    except OnwardError as error:
        return (_of_model(str(error)),)
    missing = list(_missing_operators(model.graph, model.graph.opset_imports, ""))
    if missing:
        return (*missing, *_without_gradients(model))
    try:
        own = prepare_model(model)
        prepared = in_float32(own)
        losses = _losses(prepared)
        names = choose_parameters(own, losses, None, ())
        if not losses or not names:
            lacking = "weight that an output depends on" if losses else "floating-point output"
            return (_of_model(f"nothing can be trained: the model has no {lacking}"),)
        training_step(prepared, losses, SGD(), names)
    except MissingGradientsError as error:
        return tuple(o for problem in error.problems for o in _of_gradient(problem, ""))
    except OnwardError as error:
        return (_of_model(str(error)),)
    return ()


def _of_gradient(problem: NoGradient, place: str) -> Iterator[Obstacle]:
    node = problem.node
    if problem.inside:
        around = f"{place} > " if place else ""
        for inner in problem.inside:
            yield from _of_gradient(inner, f"{around}{node.op_type} {node.name!r}")
        return
    why = problem.why or "no gradient is known"
    yield Obstacle(
        "gradient", node.name or "", _operator(node), problem.opset, place, why, _REMEDIES["gradient"]
    )


def _of_model(why: str) -> Obstacle:
    return Obstacle("model", "", "", 0, "", why, _REMEDIES["model"])


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _losses(model: ir.Model) -> dict[str, Loss]:
    found: dict[str, Loss] = {}
    for value in model.graph.outputs:
        if is_float(value):
            dims = dims_of(value) or ()
            scores = len(dims) == 2 and isinstance(dims[1], int) and dims[1] > 1
            found[value.name or ""] = CrossEntropy() if scores else MSE()
    return found


def _missing_operators(graph: ir.Graph, opsets: dict[str, int], place: str) -> Iterator[Obstacle]:
    for node in graph:
        opset = opsets.get(node.domain, 0)
        try:
            find(node.domain, node.op_type, opset)
        except UnsupportedError as error:
            yield Obstacle(
                "operator", node.name or "", _operator(node), opset, place, str(error), _REMEDIES["operator"]
            )
        for body in bodies_of(node):
            inside = f"{place} > " if place else ""
            yield from _missing_operators(body, opsets, f"{inside}{node.op_type} {node.name!r}, {body.name}")


def _without_gradients(model: ir.Model) -> Iterator[Obstacle]:
    """Nodes between weights and outputs that have no rule, as far as names tell: types may be missing."""
    depends: set[ir.Value | None] = {model.graph.initializers[n] for n in trainable_initializers(model)}
    reached: list[tuple[ir.Node, set[ir.Value | None]]] = []
    for node in model.graph:
        used = {*node.inputs, *(v for body in bodies_of(node) for n in body.all_nodes() for v in n.inputs)}
        if not used.isdisjoint(depends):
            reached.append((node, used))
            depends.update(v for v in node.outputs if v.type is None or is_float(v))
    needed: set[ir.Value | None] = set(model.graph.outputs)
    found: list[Obstacle] = []
    for node, used in reversed(reached):
        if needed.isdisjoint(node.outputs):
            continue
        needed.update(used)
        opset = model.graph.opset_imports.get(node.domain, 0)
        try:
            find(node.domain, node.op_type, opset)
            rules = find(node.domain, node.op_type, OPSET if node.domain == "" else opset)
        except UnsupportedError:
            continue  # said already
        if any(hasattr(rules, name) for name in ("gradient", "body_gradient", "canonical", "explicit")):
            continue
        found.append(
            Obstacle(
                "gradient", node.name or "", _operator(node), opset, "", "no gradient is known",
                _REMEDIES["gradient"],
            )
        )  # fmt: skip
    yield from reversed(found)

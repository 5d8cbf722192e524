"""Finds the first node that differs between Onward and onnxruntime.

Every node is given onnxruntime's own inputs to it, so that a node is blamed for what it does and never for
what reached it, nor for a difference that rounding inside it makes as well (a sum whose terms cancel).
Only when no node differs that way is the run as a whole followed to where rounding adds up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.engine import Interpreter
from onward.engine.interpreter import Observer
from onward.errors import OnwardError, UnsupportedError
from onward.graph import Array, bind
from onward.passes.expand import expand_onward
from onward.verify.reference import MARGIN
from onward.verify.report import Cause, Difference
from onward.verify.sums import SUMS, rounding_error
from onward.verify.tolerance import EXACT, Deviation, Tolerances, measure, tolerance_for
from onward.verify.witness import Witness

__all__ = ["engine_difference", "exposing", "first_difference", "refuse_random"]

_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_ROUNDINGS = 30
"""How many times the effect of one rounding of the inputs an operator may lose whose sums are not known."""

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def refuse_random(model: ir.Model) -> None:
    """Refuse nodes whose outputs differ from run to run.

    Raises:
        UnsupportedError: names all of them.
    """
    found = [n for n in model.graph.all_nodes() if n.domain == "" and (n.op_type in _RANDOM or _drops(n))]
    if found:
        opset = model.graph.opset_imports.get("", 0)
        raise UnsupportedError(
            "random nodes give something else at every run, so engines cannot be compared:\n  "
            + "\n  ".join(f"node {n.name!r}, operator {n.op_type}, opset {opset}" for n in found)
            + "\nbring the model into inference form, or freeze them"
        )


def _drops(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    mode = ir.convenience.get_const_tensor(node.inputs[2])
    return mode is None or bool(mode.numpy())


def first_difference(
    model: ir.Model,
    inputs: Mapping[str, Array],
    tolerance: Tolerances,
    *,
    optimized: Mapping[str, object],
    step: int = 0,
    observe: Callable[[Observer], object] | None = None,
) -> Difference:
    """Where the engines part on given inputs.

    Args:
        model: as Onward runs it; it may hold operators of `ai.onward`.
        inputs: every input, state included.
        tolerance: as in the comparison.
        optimized: what onnxruntime gives on these inputs with its graph optimizations on.
        step: the number that the difference is reported with.
        observe: runs the model in Onward's engine on the same inputs; by default in the interpreter.

    Raises:
        VerificationError: onnxruntime cannot run the model with its graph optimizations off.
    """
    made = [v.name for node in model.graph for v in node.outputs if v.name]
    theirs = Witness(exposing(expand_onward(model), made), optimize=False).run(inputs)
    known: dict[str, object] = {**_weights(model), **inputs, **theirs}
    if (found := _blamed(model, known, theirs, tolerance, step)) is not None:
        return found

    parted: list[Difference] = []

    def observer(node: ir.Node, results: tuple[Array, ...]) -> None:
        if not parted and (found := _compared(node, results, theirs, tolerance)) is not None:
            parted.append(_difference(model, "accumulation", step, node, found))

    if observe is None:
        Interpreter(model.graph).run(inputs, observer=observer)
    else:
        observe(observer)
    if parted:
        return parted[0]
    changed = any(
        not measure(array, theirs[name], tolerance_for(np.asarray(theirs[name]).dtype, tolerance)).ok
        for name, array in optimized.items()
        if name in theirs
    )
    return Difference(cause="optimization" if changed else "accumulation", step=step)


def engine_difference(
    model: ir.Model,
    inputs: Mapping[str, Array],
    tolerance: Tolerances,
    *,
    observe: Callable[[Sequence[str]], Mapping[str, Array]],
    failing: Sequence[str],
    step: int = 0,
) -> Difference:
    """Where an engine parts from its operators' kernels, given the engine's own inputs to each node.

    Args:
        model: as the engine runs it.
        inputs: every input, state included.
        tolerance: as in the comparison.
        observe: gives named tensors as the engine makes them.
        failing: outputs that are wrong. Keeping every tensor changes what an engine fuses, and a fault may be
            gone then: the first of these in the graph's order is named.
        step: the number that the difference is reported with.
    """
    made = observe([v.name for node in model.graph for v in node.outputs if v.name and _is_tensor(v)])
    known: dict[str, object] = {**_weights(model), **inputs, **made}
    if (found := _blamed(model, known, made, tolerance, step)) is not None:
        return dataclasses.replace(found, cause="engine", ours=found.theirs, theirs=found.ours)
    wrong = set(failing)
    for node in model.graph:
        for value in node.outputs:
            if value.name in wrong:
                note = "wrong here first, and right where the engine keeps every tensor"
                return _difference(model, "engine", step, node, (value.name, Deviation(ok=False, note=note)))
    return Difference(cause="engine", step=step)


def _weights(model: ir.Model) -> dict[str, Array]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def _blamed(
    model: ir.Model,
    known: Mapping[str, object],
    theirs: Mapping[str, object],
    tolerance: Tolerances,
    step: int,
) -> Difference | None:
    """The first node whose kernel, on inputs that are known, makes something else than is known of it."""
    for node in model.graph:
        names = [None if v is None else v.name or "" for v in node.inputs]
        if all(name is None or name in known for name in names):
            operands = [None if name is None else known[name] for name in names]
            opset = model.graph.opset_imports.get(node.domain, 0)
            results = _alone(node, opset, operands)
            if _compared(node, results, theirs, tolerance) is None:
                continue
            slack = _rounding(node, opset, operands)
            if (found := _compared(node, results, theirs, tolerance, slack)) is not None:
                return _difference(model, "node", step, node, found)
    return None


def _compared(
    node: ir.Node,
    results: Sequence[object],
    theirs: Mapping[str, object],
    tolerance: Tolerances,
    slack: Sequence[Array | float] = (),
) -> tuple[str, Deviation] | None:
    """The first of a node's results that differs."""
    for i, (value, ours) in enumerate(zip(node.outputs, results, strict=False)):
        if value.name is not None and value.name in theirs:
            other = theirs[value.name]
            allowed = tolerance_for(np.asarray(other).dtype, tolerance)
            deviation = measure(ours, other, allowed, slack[i] if i < len(slack) else 0.0)
            if not deviation.ok:
                return value.name, deviation
    return None


def _difference(
    model: ir.Model, cause: Cause, step: int, node: ir.Node, found: tuple[str, Deviation]
) -> Difference:
    output, deviation = found
    return Difference(
        cause=cause,
        step=step,
        node=node.name,
        operator=node.op_type,
        domain=node.domain,
        opset=model.graph.opset_imports.get(node.domain, 0),
        output=output,
        index=list(model.graph).index(node),
        position=deviation.position,
        ours=deviation.ours,
        theirs=deviation.theirs,
        max_abs=deviation.max_abs,
        max_rel=deviation.max_rel,
        note=deviation.note,
    )


def _alone(node: ir.Node, opset: int, operands: Sequence[object]) -> tuple[object, ...]:
    """What Onward's kernel makes of one node's inputs; an error's text where it fails."""
    try:
        with np.errstate(all="ignore"):
            results = bind(node, opset).kernel(*operands)  # type: ignore[attr-defined]
    except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, OnwardError) as error:
        return (f"{type(error).__name__}: {error}",)
    if not isinstance(results, tuple):
        results = (results,)
    return tuple(r if isinstance(r, list) else np.asarray(r) for r in results)


def _rounding(node: ir.Node, opset: int, operands: Sequence[object]) -> list[Array | float]:
    """For each output how far rounding inside the node may put two engines apart; 0 where that is unknown.

    Of a sum whose terms are known, that is `MARGIN` times what `sums.rounding_error` gives for each element.
    Other nodes run in float64 on their inputs and on inputs that are one rounding off at random.
    """
    rng = np.random.default_rng(0)
    exact: list[object] = []
    rounded: list[object] = []
    coarsest = 0.0
    for x in operands:
        if not isinstance(x, np.ndarray) or x.dtype.name not in _EPSILON:
            exact.append(x)
            rounded.append(x)
            continue
        wide = x.astype(np.float64)
        coarsest = max(coarsest, _EPSILON[x.dtype.name])
        exact.append(wide)
        rounded.append(np.asarray(wide * (1 + _EPSILON[x.dtype.name] * rng.uniform(-1, 1, x.shape))))
    results = _alone(node, opset, exact)
    if (node.domain, node.op_type) in SUMS and isinstance(results[0], np.ndarray) and coarsest:
        error = rounding_error(bind(node, opset), [_array(x) for x in exact], results[0])
        return [np.nan_to_num(MARGIN * coarsest / _EPSILON["float32"] * error, posinf=0.0)]
    slack: list[Array | float] = []
    for a, b in zip(results, _alone(node, opset, rounded), strict=False):
        floats = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind == "f"
        change = measure(a, b, EXACT).max_abs if floats else 0.0
        slack.append(_ROUNDINGS * change if np.isfinite(change) else 0.0)
    return slack


def _array(x: object) -> Array | None:
    return x if isinstance(x, np.ndarray) else None


def exposing(model: ir.Model, names: Collection[str]) -> ir.Model:
    """The model with named tensors that its nodes make as outputs too."""
    wanted = set(names)
    model = model.clone()
    outputs = {v.name for v in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted and value.name not in outputs and _is_tensor(value):
                model.graph.outputs.append(value)
    return model


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)

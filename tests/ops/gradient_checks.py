"""What a gradient rule has to stand: central differences in float64, and onnxruntime in float32; torch
autograd is in `torch_checks`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from tests.ops.cases import CASES
from tests.ops.exclusions import (
    GRADIENT_CASES,
    MOVED,
    NO_TORCH,
    ORT_GRADIENTS,
    SECOND_ORDER,
    TORCH_GRADIENTS,
)
from tests.ops.harness import (
    ORT_OPSET,
    Array,
    Case,
    assert_same,
    feed,
    for_double,
    has_gradient,
    in_double,
    model_of,
    run,
    run_ort,
    slope,
)
from tests.ops.onnx_cases import as_case, onnx_cases

from onward.autodiff import MissingGradientsError, gradients
from onward.engine.interpreter import Interpreter
from onward.graph import Builder, canonical_model
from onward.passes import expand_onward

_ELEMENTS = 40
"""Operands up to this size are checked element by element, larger ones along random directions."""

_DIRECTIONS = 5


@functools.cache
def differentiable_operators() -> tuple[str, ...]:
    """The standard's operators whose newest schema calls an input differentiable, deprecated ones aside."""
    wanted = onnx.defs.OpSchema.DifferentiationCategory.Differentiable
    return tuple(
        sorted(
            schema.name
            for schema in onnx.defs.get_all_schemas()
            if not schema.domain
            and not schema.deprecated
            and any(formal.differentiation_category == wanted for formal in schema.inputs)
        )
    )


CONSTANT_GRADIENTS = {
    "Cast": "the gradient is constant: float64 is cast to itself",
    "Hardmax": "the gradient is 0 everywhere",
}
"""Operators whose gradient has no slope in anything, and why."""


@functools.cache
def gradient_cases() -> tuple[Case, ...]:
    """The ONNX project's cases and ours whose operators have a gradient, away from kinks."""
    found = [case for c in onnx_cases() if c.name not in GRADIENT_CASES and (case := as_case(c)) is not None]
    ours = [case for case in CASES if has_gradient(case)]
    return tuple(case for case in [*map(_moved, found), *ours] if case.differentiated())


def without_ort(case: Case) -> str:
    """Why onnxruntime does not run the gradient's graph; empty where it does."""
    if case.opset > ORT_OPSET:
        return f"onnxruntime loads opset {ORT_OPSET} at most"
    return case.without_ort or ORT_GRADIENTS.get(case.id, "")


def without_second(case: Case) -> str:
    """Why the gradient is not differentiated again; empty where it is."""
    return CONSTANT_GRADIENTS.get(case.op_type, "") or SECOND_ORDER.get(case.id, "")


def without_torch(case: Case) -> str:
    """Why torch is not asked; empty where it is, and may still refuse a form that it does not have."""
    return NO_TORCH.get(case.op_type, "") or TORCH_GRADIENTS.get(case.id, "")


def check_emitted(case: Case) -> None:
    """Types of the gradients in float32, and onnxruntime's values of the same graph."""
    model = model_of(case, gradient=True)
    inputs = feed(case, model)
    got = run(model, inputs)
    for i in case.differentiated():
        if f"dx{i}" in got:
            assert got[f"dx{i}"].shape == inputs[f"x{i}"].shape
            assert got[f"dx{i}"].dtype == inputs[f"x{i}"].dtype
    if not without_ort(case):
        assert_same(got, run_ort(model, inputs), case.rtol, case.atol)


def in_float64(case: Case) -> tuple[ir.Model, dict[str, Array]]:
    """The model of the gradient in float64, and its inputs."""
    narrow = feed(case, model_of(case, gradient=True))
    return in_double(model_of(for_double(case), gradient=True), narrow)


def check_differences(case: Case) -> None:
    """The rule against central differences, both in float64."""
    narrow = feed(case, model_of(case, gradient=True))
    case = for_double(case)
    wide, inputs = in_double(model_of(case, gradient=True), narrow)
    exact = run(wide, inputs)
    forward, _ = in_double(model_of(case), narrow)
    engine = Interpreter(forward.graph)
    fed = {v.name or "": inputs[v.name or ""] for v in forward.graph.inputs}
    seeds = {name.removeprefix("d"): dy for name, dy in inputs.items() if name.startswith("dy")}

    for i in case.differentiated():
        name = f"x{i}"

        def objective(x: Array, name: str = name) -> float:
            outputs = engine.run({**fed, name: x}, list(seeds))
            return sum(float(np.sum(outputs[y] * dy)) for y, dy in seeds.items())

        dx = exact.get(f"dx{i}", np.zeros_like(fed[name]))
        want = np.array([slope(objective, fed[name], v) for v in _directions(fed[name])])
        have = np.array([float(np.sum(dx * v)) for v in _directions(fed[name])])
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-8 * scale, err_msg=f"d/dx{i}")


def check_second(case: Case) -> bool:
    """The gradient of the gradient, of Σ ⟨dx, v⟩ by what is differentiated and by dy, against central
    differences of dx along a random direction, in float64. Operators of `ai.onward` that have no gradient
    are differentiated through their bodies.

    Returns:
        Whether there was anything to check: the gradient may be constant, or the case be left out.
    """
    if without_second(case):
        return False
    wide, inputs = in_float64(case)
    first = Interpreter(wide.graph)
    rng = np.random.default_rng(11)
    firsts = {name: dx for name, dx in run(wide, inputs).items() if name.startswith("dx")}
    along = {name: rng.normal(size=dx.shape) for name, dx in firsts.items()}
    names = [f"x{i}" for i in for_double(case).differentiated()] + [
        name for name in inputs if name.startswith("dy")
    ]
    try:
        model, seconds = _again(wide, along, names)
    except MissingGradientsError:
        model, seconds = _again(expand_onward(wide), along, names)
    if not seconds:
        return False
    exact = run(model, inputs)
    for name in seconds:

        def objective(x: Array, name: str = name) -> float:
            found = first.run({**inputs, name: x}, list(firsts))
            return sum(float(np.sum(found[dx] * along[dx])) for dx in firsts)

        direction = rng.normal(size=inputs[name].shape)
        want = slope(objective, inputs[name], direction)
        have = float(np.sum(exact[f"dd.{name}"] * direction))
        np.testing.assert_allclose(
            have, want, rtol=1e-5, atol=1e-7 * max(1.0, abs(want)), err_msg=f"second order, by {name}"
        )
    return True


def _again(wide: ir.Model, along: Mapping[str, Array], names: Sequence[str]) -> tuple[ir.Model, list[str]]:
    """The model of a gradient with the gradients of Σ ⟨dx, v⟩ as outputs `dd.<name>`, and which there are."""
    model = canonical_model(wide).clone()
    g = Builder(model.graph)
    values = {v.name or "": v for v in (*model.graph.inputs, *model.graph.outputs)}
    seeds = {values[name]: g.initializer(f"{name}.along", array) for name, array in along.items()}
    there = [name for name in names if name in values]
    seconds = gradients(g, seeds, [values[name] for name in there])
    found = {name: dd for name, dd in zip(there, seconds, strict=True) if dd is not None}
    for name, dd in found.items():
        g.output(dd, f"dd.{name}")
    return model, list(found)


def _moved(case: Case) -> Case:
    move, _ = MOVED.get(case.op_type, (None, ""))
    if move is None:
        return case
    wrt = case.differentiated()
    inputs = [move(x) if i in wrt else x for i, x in enumerate(case.inputs)]
    return dataclasses.replace(case, inputs=inputs)


def _directions(x: Array) -> list[Array]:
    if x.size <= _ELEMENTS:
        return [unit.reshape(x.shape) for unit in np.eye(x.size)]
    rng = np.random.default_rng(x.size)
    return [rng.normal(size=x.shape) for _ in range(_DIRECTIONS)]

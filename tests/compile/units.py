"""What the tests of the compiler's stages share: small programs, placed and lowered stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tests.compile.kernels.targets import tuned

from onward.compile import rules as rules  # registers them
from onward.compile.codegen.target import host_target
from onward.compile.context import Context, Emitted, Site
from onward.compile.grouping import grouped
from onward.compile.groups import ordered
from onward.compile.images import image_geometry
from onward.compile.lowering import Lowered, lower
from onward.compile.options import DEFAULT_OPTIONS
from onward.compile.placement import Placement, place
from onward.compile.program import Operation, Program, specialize
from onward.compile.recompute import recompute
from onward.compile.splitting import split
from onward.compile.unit import Unit
from onward.compile.uses import Uses
from onward.engine.plan import Plan
from onward.graph import Array, Builder

TARGET = tuned(host_target(), group_operands=12, group_operations=24, recompute_flops=10)
"""This machine, but for what decides where groups end."""

Build = Callable[[Builder], ir.Value | list[ir.Value]]


def model_of(build: Build) -> ir.Model:
    """A model; `build` names its inputs and gives its results, y0, y1, ..."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="small")
    g = Builder(graph)
    found = build(g)
    for i, y in enumerate(found if isinstance(found, list) else [found]):
        g.output(y, f"y{i}")
    return ir.Model(graph, ir_version=10)


def program_of(build: Build) -> Program:
    """A model's program, split; its inputs have fixed shapes."""
    model = model_of(build)
    shapes = {
        v.name or "": tuple(int(d) for d in v.shape)  # type: ignore[call-overload]
        for v in model.graph.inputs
        if v.shape is not None and v.name not in model.graph.initializers
    }
    return split(specialize(model, shapes))


def unit_of(program: Program, threads: int = 2) -> Unit:
    """A program, grouped and laid out."""
    groups = ordered(recompute(grouped(program, TARGET), program, TARGET))
    uses = Uses(program, groups)
    images = image_geometry(program, groups, uses, DEFAULT_OPTIONS, TARGET)
    return Unit(program, tuple(groups), uses, images, DEFAULT_OPTIONS, TARGET, threads)


@dataclass
class Scene:
    """A unit with the places of its values, and a context that emits for its last group."""

    unit: Unit
    placement: Placement
    emitted: Emitted
    context: Context

    def operation(self, op_type: str) -> Operation:
        """The first operation of a type."""
        return next(o for o in self.unit.program.operations if o.node.op_type == op_type)


def scene_of(
    build: Build, fixed: Mapping[str, Array] | None = None, bindings: Mapping[str, str] | None = None
) -> Scene:
    """What rules see before anything is lowered."""
    unit = unit_of(program_of(build))
    if fixed is None:
        weights = unit.program.weights.items()
        fixed = {name: v.const_value.numpy() for name, v in weights if v.const_value is not None}
    placement, emitted = place(unit, fixed, bindings or {}), Emitted()
    context = Context(unit, placement, emitted, Site(max(0, len(unit.groups) - 1), "site"))
    return Scene(unit, placement, emitted, context)


def lowered_of(build: Build) -> Lowered:
    """A program without state, lowered."""
    unit = unit_of(program_of(build))
    return lower(unit, place(unit, {}, {}), {})


def kinds(lowered: Lowered) -> list[str]:
    """The calls' kernels, in short: their families, and "numpy" for NumPy kernels."""
    return [item.kernel.name.split()[0] if hasattr(item, "kernel") else "numpy" for item in lowered.calls]


def floats(g: Builder, name: str, *shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """An input."""
    return g.input(name, dtype, shape)


def rng_array(*shape: int) -> Array:
    """Numbers that are the same each time."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def left_to_numpy(plan: Plan, *arrays: Array) -> list[str]:
    """Why NumPy computes steps of a plan; not asked of float16 where this processor does not convert it."""
    if any(array.dtype == np.float16 for array in arrays) and not TARGET.converts_halves:
        return []
    return [row.reason for row in plan.rows if row.reason]

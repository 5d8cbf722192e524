"""From a model and input shapes to a plan: lowered, its memory packed, its calls written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import onnx_ir as ir

import onward.compile.rules  # noqa: F401 - registers them
from onward.compile.codegen.target import Target
from onward.compile.grouping import grouped
from onward.compile.groups import ordered
from onward.compile.halves import in_float32
from onward.compile.images import image_geometry
from onward.compile.items import Item
from onward.compile.lowering import lower
from onward.compile.memory import Lifetime, lifetimes, pack
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.placement import place
from onward.compile.program import specialize
from onward.compile.recompute import recompute
from onward.compile.splitting import split
from onward.compile.unit import Unit
from onward.compile.updates import joined
from onward.compile.uses import Uses
from onward.compile.writing import Planned, write
from onward.errors import LimitError
from onward.graph import Array
from onward.graph.memory import too_large

__all__ = ["Planned", "plan_model"]


def plan_model(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, Array],
    bindings: Mapping[str, str],
    target: Target,
    threads: int,
    swapped: Collection[str] = (),
    options: CompileOptions = DEFAULT_OPTIONS,
    contents: Mapping[str, Array] = MappingProxyType({}),
) -> Planned:
    """Plan a model at fixed input shapes.

    Args:
        model: it is not changed.
        shapes: of its inputs.
        fixed: arrays of its state and weights by name, of which only the sizes count.
        bindings: state inputs and the outputs that replace them.
        target: the processor.
        threads: of the teams that will run the plan.
        swapped: weights whose contents the session may replace.
        options: what the user chose about kernels.
        contents: of inputs by name: the plan is for these alone.

    Raises:
        NotStaticError: a shape depends on data.
        ShapeError: the shapes contradict an operator.
        LimitError: a run would take more memory than the machine has.
    """
    known = specialize(model, shapes, swapped, contents)
    program = in_float32(split(in_float32(known, target)), target)
    groups = ordered(recompute(grouped(program, target), program, target))
    uses = Uses(program, groups)
    images = image_geometry(program, groups, uses, options, target)
    unit = Unit(program, tuple(groups), uses, images, options, target, threads)
    placement = place(unit, fixed, bindings)
    lowered = lower(unit, placement, bindings)
    calls = joined(lowered.calls, target)
    lives = lifetimes(calls, lowered.prologue, lowered.outputs.values())
    arena = pack(lives)
    if (reason := too_large(arena.nbytes)) is not None:
        raise LimitError(f"{_largest(calls, lives)}: with what it works on, {reason}")
    return write(unit, replace(lowered, calls=calls), arena)


def _largest(calls: Sequence[Item], lives: Sequence[Lifetime]) -> str:
    """The call that works on the largest buffer."""
    buffer = max(lives, key=lambda life: life.buffer.nbytes).buffer
    found = [call.label for call in calls if buffer in call.writes] or [
        call.label for call in calls if buffer in call.reads
    ]
    return found[0] if found else "the plan"

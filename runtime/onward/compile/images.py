"""Layout assignment: which values are kept channels-last (NHWC), inside how wide a border of zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onward.compile import geometry
from onward.compile.codegen.target import Target
from onward.compile.groups import Group
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.program import Program
from onward.compile.registry import rule_for
from onward.compile.uses import Uses

__all__ = ["image_geometry"]

_KINDS = tuple(map(np.dtype, (np.float32, np.float64, np.bool_)))

Pair = tuple[ir.Value, ir.Value]


def image_geometry(
    program: Program, groups: Sequence[Group], uses: Uses, options: CompileOptions, target: Target
) -> dict[ir.Value, Image]:
    """The geometry of every value that is kept channels-last.

    Requests name the operands and results that their kernels take channels-last, and those that share a
    layout; rules, the borders that their kernels need. Element-wise groups pass the layout on between values
    of the group's shape.
    """
    images = _spread(program, groups, {v for r in program.requests for v in r.channels_last})
    borders: dict[ir.Value, list[int]] = {v: [0, 0, 0, 0] for v in images}
    alike = list(_fused_pairs(program, groups, uses))
    for request in program.requests:
        if (rule := rule_for(request)) is None:
            continue
        found = rule.borders(program, request, options, target)
        alike.extend(found.alike)
        for value, border in found.needed.items():
            if value in borders:
                borders[value] = [max(a, b) for a, b in zip(borders[value], border, strict=True)]
    _tie(alike, borders)
    return {v: geometry.image(program.shapes[v], borders[v]) for v in images}


def _spread(program: Program, groups: Sequence[Group], wanted: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that are kept channels-last where some are wanted so."""
    images = {v for v in wanted if _can_be_image(program, v)}
    together = [[v for v in r.same_layout if _can_be_image(program, v)] for r in program.requests]
    for group in groups:
        if elements := group.elements:
            shape = program.shapes[elements[-1].outputs[0]]
            outputs = [v for o in elements for v in o.outputs]
            same = [v for v in (*group.inputs, *outputs) if program.shapes[v] == shape]
            together.append([v for v in same if _can_be_image(program, v)])
    grown = True
    while grown:
        before = len(images)
        for same in together:
            if any(v in images for v in same):
                images.update(same)
        grown = len(images) > before
    return images


def _tie(pairs: Sequence[Pair], borders: dict[ir.Value, list[int]]) -> None:
    """Give both values of each pair one border."""
    known = [(one, other) for one, other in pairs if one in borders and other in borders]
    changed = True
    while changed:
        changed = False
        for one, other in known:
            joint = [max(a, b) for a, b in zip(borders[one], borders[other], strict=True)]
            changed |= joint != borders[one] or joint != borders[other]
            borders[one], borders[other] = joint, list(joint)


def _fused_pairs(program: Program, groups: Sequence[Group], uses: Uses) -> Iterator[Pair]:
    """A kernel that computes element-wise operations on its result walks their operands like the result."""
    for group in groups:
        if (made := uses.host(group)) is None:
            continue
        (result,) = (v for o in group.operations for v in o.outputs if uses.escapes(v, group))
        for value in group.inputs:
            if value is not made and program.shapes[value] == group.shape:
                yield result, value


def _can_be_image(program: Program, value: ir.Value) -> bool:
    return len(program.shapes[value]) in (3, 4) and program.dtypes[value] in _KINDS

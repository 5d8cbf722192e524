"""How far two engines may be apart on a model that rounds what it computes to integers.

A number that lies within rounding of the middle between two integers becomes either, and a network carries
such steps on. So its outputs agree in steps of the quantisation, not in the last bits of floats.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onward.verify.tolerance import TOLERANCES, Tolerance

__all__ = ["STEPS", "quantised_tolerances"]

STEPS = 4
"""How many steps of the quantisation an element of an output may be apart."""

_INTEGERS = ("int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16")


def quantised_tolerances(model: ir.Model) -> Mapping[str, Tolerance] | None:
    """The tolerances of a model with nodes that quantise; None: it has none, and `TOLERANCES` holds.

    Floats may be `STEPS` steps apart, a step being the largest element of the output divided by 2^(b−1) − 1
    for the fewest bits b that a node quantises to; integers of at most 16 bits by `STEPS`. Wider integers are
    counts, classes and indices, and have to be equal.
    """
    found = [bits for node in model.graph.all_nodes() if (bits := _bits(node)) is not None]
    if not found:
        return None
    step = 1 / max(2 ** (min(found) - 1) - 1, 1)
    floats = {
        name: Tolerance(t.absolute, t.relative, max(t.scale, STEPS * step)) for name, t in TOLERANCES.items()
    }
    return {**floats, **dict.fromkeys(_INTEGERS, Tolerance(absolute=STEPS))}


def _bits(node: ir.Node) -> int | None:
    """The bits that a node rounds a computed number to; None where it does not."""
    dynamic = node.op_type == "DynamicQuantizeLinear"
    if not (dynamic or node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")):
        return None
    # of QuantizeLinear the zero point, and of QLinear operators the last one, has the type of the output
    points = [value for value in node.inputs[2:] if value is not None]
    given = [*node.outputs[:1], *points[::-1]]
    widths = [v.dtype.bitwidth for v in given if v.dtype is not None and not v.dtype.is_floating_point()]
    return int(widths[0]) if widths else 8

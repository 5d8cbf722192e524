"""What a model costs: layers with output shapes, parameters and multiply-accumulates."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, final

import onnx_ir as ir

from onward.graph import Dim, dims_of, dtype_of, is_float, numpy_dtype

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LayerSummary", "Summary", "summarize"]

_HEADER = ("layer", "operators", "output shape", "parameters", "MACs")


@final
@dataclass(frozen=True)
class LayerSummary:
    """One layer of a model: the nodes whose names begin with `<layer>/`.

    Attributes:
        name: the layer's name; an input's or a node's own where it belongs to no layer.
        operators: its operators in order; for an input its dtype.
        output_shape: the shape of its last node's first output; None where it is unknown.
        parameters: how many numbers are trained. A parameter that several layers use counts in the first.
        statistics: how many are running statistics.
        macs: multiply-accumulates of convolutions, matrix products and recurrences for one sample; None
            where an extent is unknown.
    """

    name: str
    operators: tuple[str, ...]
    output_shape: tuple[Dim, ...] | None
    parameters: int
    statistics: int
    macs: int | None


@final
@dataclass(frozen=True)
class Summary:
    """A table of layers. `str()` is plain text; `show()` writes a drawn table where there is a terminal."""

    name: str
    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        """How many running statistics there are."""
        return sum(layer.statistics for layer in self.layers)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one sample; None where a layer's are unknown."""
        found = [layer.macs for layer in self.layers]
        return None if None in found else sum(macs for macs in found if macs is not None)

    def show(self, file: TextIO | None = None) -> None:
        """Write the table to a file, by default to standard output."""
        target = file if file is not None else sys.stdout
        if target.isatty():
            from rich.console import Console

            Console(file=target, markup=False, emoji=False).print(self)
        else:
            print(self, file=target)

    def __str__(self) -> str:
        rows = [_HEADER, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
        lines = [
            "  ".join(
                cell.rjust(width) if i >= 3 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.name, lines[0], rule, *lines[1:], rule, self._totals()])

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=self.name, caption=self._totals())
        for i, title in enumerate(_HEADER):
            table.add_column(title, justify="right" if i >= 3 else "left")
        for row in self._rows():
            table.add_row(*row)
        return table

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        return [
            (
                layer.name,
                _run_lengths(layer.operators),
                _shape_text(layer.output_shape),
                f"{layer.parameters:,}" if layer.parameters else "",
                "?" if layer.macs is None else f"{layer.macs:,}" if layer.macs else "",
            )
            for layer in self.layers
        ]

    def _totals(self) -> str:
        macs = "unknown" if self.macs is None else f"{self.macs:,}"
        statistics = f", {self.statistics:,} running statistics" if self.statistics else ""
        return f"{self.parameters:,} parameters{statistics}, {macs} MACs a sample"


def summarize(model: ir.Model) -> Summary:
    """The layers of any model, grouped by the part of node names before the last `/`.

    Floating-point initializers of rank 1 or more are parameters, except running statistics; scalars are
    constants. Subgraphs are not looked into.
    """
    groups: dict[str, list[ir.Node]] = {}
    for position, node in enumerate(model.graph):
        name = node.name or f"{node.op_type}[{position}]"
        groups.setdefault(name.rpartition("/")[0] or name, []).append(node)
    counted: set[ir.Value] = set()
    rows = [
        LayerSummary(value.name or "", (str(numpy_dtype(dtype_of(value))),), dims_of(value), 0, 0, 0)
        for value in model.graph.inputs
        if not value.is_initializer()
    ]
    rows += [_layer(name, nodes, counted) for name, nodes in groups.items()]
    return Summary(model.graph.name or "", tuple(rows))


def _layer(name: str, nodes: Sequence[ir.Node], counted: set[ir.Value]) -> LayerSummary:
    parameters = statistics = 0
    for node in nodes:
        for i, value in enumerate(node.inputs):
            if value is None or value in counted or not is_weight(value):
                continue
            counted.add(value)
            size = math.prod(d for d in dims_of(value) or () if isinstance(d, int))
            if node.op_type == "BatchNormalization" and i >= 3:
                statistics += size
            else:
                parameters += size
    macs = [_macs(node) for node in nodes]
    return LayerSummary(
        name,
        tuple(node.op_type for node in nodes),
        dims_of(nodes[-1].outputs[0]),
        parameters,
        statistics,
        None if None in macs else sum(m for m in macs if m is not None),
    )


def is_weight(value: ir.Value) -> bool:
    """Whether a value is an initializer that layers have as a parameter or as running statistics."""
    return value.is_initializer() and is_float(value) and bool(dims_of(value))


def _macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of a node for one sample; None where an extent is unknown."""
    if node.domain not in ("", "ai.onnx"):
        return 0
    match node.op_type:
        case "Conv":
            return _times(_count(node.outputs[0]), _per_output(node.inputs[1]))
        case "ConvTranspose":
            return _times(_count(node.inputs[0]), _per_output(node.inputs[1]))
        case "Gemm":
            transposed = node.attributes.get_int("transA", 0)
            return _times(_count(node.outputs[0]), _extent(node.inputs[0], 0 if transposed else 1))
        case "MatMul":
            return _times(_count(node.outputs[0]), _extent(node.inputs[0], -1))
        case "LSTM" | "GRU" | "RNN":
            products = _plus(_size(node.inputs[1]), _size(node.inputs[2]))
            return _times(_extent(node.inputs[0], 0), products)
        case _:
            return 0


def _count(value: ir.Value | None) -> int | None:
    """Cells of one sample: a symbolic first extent counts 1."""
    dims = dims_of(value) if value is not None else None
    if dims is None:
        return None
    total = 1
    for i, extent in enumerate(dims):
        if isinstance(extent, int):
            total *= extent
        elif i > 0:
            return None
    return total


def _per_output(weight: ir.Value | None) -> int | None:
    """Products that one output of a convolution sums: the weight's extents but the first."""
    dims = dims_of(weight) if weight is not None else None
    if dims is None:
        return None
    fixed = [d for d in dims[1:] if isinstance(d, int)]
    return math.prod(fixed) if len(fixed) == len(dims) - 1 else None


def _size(value: ir.Value | None) -> int | None:
    dims = dims_of(value) if value is not None else None
    if dims is None:
        return None
    fixed = [d for d in dims if isinstance(d, int)]
    return math.prod(fixed) if len(fixed) == len(dims) else None


def _extent(value: ir.Value | None, axis: int) -> int | None:
    dims = dims_of(value) if value is not None else None
    extent = dims[axis] if dims else None
    return extent if isinstance(extent, int) else None


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _run_lengths(operators: Sequence[str]) -> str:
    """`Conv, Relu`; repeated operators once, with their count."""
    counts: dict[str, int] = {}
    for operator in operators:
        counts[operator] = counts.get(operator, 0) + 1
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts.items())


def _shape_text(dims: tuple[Dim, ...] | None) -> str:
    return "?" if dims is None else f"[{', '.join('?' if d is None else str(d) for d in dims)}]"

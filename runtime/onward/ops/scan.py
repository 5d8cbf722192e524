from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError, UnsupportedError
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    BodyOp,
    Builder,
    Dim,
    Op,
    RunBody,
    around,
    capture,
    dims_of,
    infer_body,
    inline,
    op,
    static_shape,
)
from onward.graph.run_limits import budget
from onward.ops._control import Typed, collected, of_elements, per_iteration, settled, size_of, typed
from onward.ops._control_grad import (
    Differentiate,
    Stacked,
    keeping,
    scan_backward,
)

_UNROLLED = 256
"""The nodes that a plan has in the place of a Scan; more are iterations of its body's plan."""


@op("Scan", since=(9, 11, 16, 19, 21, 23, 24, 25))
class Scan(Op):
    """A body for each slice of its scan inputs, with states that go from one iteration to the next."""

    body: ir.Graph
    num_scan_inputs: int
    scan_input_axes: tuple[int, ...] | None = None
    scan_input_directions: tuple[int, ...] | None = None
    scan_output_axes: tuple[int, ...] | None = None
    scan_output_directions: tuple[int, ...] | None = None

    def explicit(self, g: Builder, *initial_state_and_scan_inputs: ir.Value) -> tuple[ir.Value, ...]:
        captured = capture(self.body)
        return g.emit(
            "Scan",
            *initial_state_and_scan_inputs,
            *captured,
            domain=ONWARD_DOMAIN,
            outputs=len(self.body.outputs),
            body=self.body,
            num_captured=len(captured),
            num_scan_inputs=self.num_scan_inputs,
            scan_input_axes=self.scan_input_axes,
            scan_input_directions=self.scan_input_directions,
            scan_output_axes=self.scan_output_axes,
            scan_output_directions=self.scan_output_directions,
        )


@op("Scan", since=8)
class Scan8(Op):
    """Scan of each sample of a batch: the batch is the first axis of every operand, the time the second."""

    body: ir.Graph
    directions: tuple[int, ...] | None = None
    num_scan_inputs: int

    def canonical(
        self, g: Builder, sequence_lens: ir.Value | None, *operands: ir.Value
    ) -> tuple[ir.Value, ...]:
        if sequence_lens is not None:
            raise UnsupportedError(
                "sequence_lens is not supported; run sequences of one length, or use opset 9"
            )
        count = len(operands)
        sample = ir.Graph([], [], nodes=[], opset_imports=dict(g.graph.opset_imports), name="sample")
        inner = g.inside(sample)
        slices = []
        for value in operands:
            dims = dims_of(value)
            kept = None if dims is None else dims[1:]
            slices.append(inner.input(inner.unique(f"{value.name}/sample"), _dtype(value), kept or ()))
            slices[-1].shape = None if kept is None else ir.Shape(kept)
        results = inner.emit(
            "Scan",
            *slices,
            outputs=len(self.body.outputs),
            body=self.body,
            num_scan_inputs=self.num_scan_inputs,
            scan_input_directions=self.directions,
        )
        for result, output in zip(results, self.body.outputs, strict=True):
            result.type = output.type
        sample.outputs.extend(results)
        return g.emit("Scan", *operands, outputs=len(results), body=sample, num_scan_inputs=count)


@op("Scan", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class ExplicitScan(BodyOp):
    """Scan whose body takes the last `num_captured` operands anew in each iteration."""

    body: ir.Graph
    num_captured: int = 0
    num_scan_inputs: int
    scan_input_axes: tuple[int, ...] | None = None
    scan_input_directions: tuple[int, ...] | None = None
    scan_output_axes: tuple[int, ...] | None = None
    scan_output_directions: tuple[int, ...] | None = None

    def _counts(self, operands: int) -> tuple[int, int]:
        """How many states there are, and how many outputs are collected."""
        states = operands - self.num_captured - self.num_scan_inputs
        outputs = len(self.body.outputs) - states
        for name, wanted in (("input", self.num_scan_inputs), ("output", outputs)):
            for what in ("axes", "directions"):
                given = getattr(self, f"scan_{name}_{what}")
                if given is not None and len(given) != wanted:
                    raise InvalidModelError(
                        f"scan_{name}_{what} has {len(given)} entries for {wanted} {name}s"
                    )
        if states < 0 or outputs < 0:
            raise InvalidModelError(f"{operands} operands and {len(self.body.outputs)} outputs do not fit")
        return states, outputs

    def unrolled(self, g: Builder, *operands: ir.Value) -> tuple[ir.Value, ...] | None:
        count, outputs = self._counts(len(operands))
        scanned, captured = operands[count:][: self.num_scan_inputs], operands[count + self.num_scan_inputs :]
        axes = self.scan_input_axes or (0,) * len(scanned)
        shapes = [static_shape(x) for x in scanned]
        if not scanned or any(shape is None for shape in shapes):
            return None
        length, *others = (shape[axis] for shape, axis in zip(shapes, axes, strict=True) if shape is not None)
        if not 0 < length * max(1, len(self.body)) <= _UNROLLED or any(other != length for other in others):
            return None
        backwards = self.scan_input_directions or (0,) * len(scanned)
        states: Sequence[ir.Value] = operands[:count]
        parts: list[list[ir.Value]] = [[] for _ in range(outputs)]
        for i in range(length):
            slices = [
                g.Gather(x, g.const(length - 1 - i if back else i, np.int64), axis=axis)
                for x, axis, back in zip(scanned, axes, backwards, strict=True)
            ]
            results = inline(g, self.body, [*states, *slices, *captured])
            states = results[:count]
            for part, result in zip(parts, results[count:], strict=True):
                part.append(result)
        ways = zip(
            parts,
            self.scan_output_axes or (0,) * outputs,
            self.scan_output_directions or (0,) * outputs,
            strict=True,
        )
        return (*states, *(_stacked(g, part[::-1] if back else part, axis) for part, axis, back in ways))

    def run(self, run_body: RunBody, *operands: Any) -> tuple[Any, ...]:
        count, outputs = self._counts(len(operands))
        states = operands[:count]
        scanned = operands[count : count + self.num_scan_inputs]
        captured = operands[count + self.num_scan_inputs :]
        axes = self.scan_input_axes or (0,) * len(scanned)
        moved = [np.moveaxis(x, axis, 0) for x, axis in zip(scanned, axes, strict=True)]
        backwards = self.scan_input_directions or (0,) * len(scanned)
        moved = [x[::-1] if back else x for x, back in zip(moved, backwards, strict=True)]
        lengths = {len(x) for x in moved}
        if len(lengths) > 1:
            raise ShapeError(f"the scan inputs have different lengths: {sorted(lengths)}")
        parts: list[list[Array]] = [[] for _ in range(outputs)]
        length = lengths.pop() if lengths else 0
        with budget() as allowed:
            allowed.admit(length)
            began = time.monotonic()
            for i in range(length):
                allowed.iterate()
                allowed.keep_pace(i, length, began)
                results = run_body(self.body, (*states, *(np.asarray(x[i]) for x in moved), *captured))
                states = results[:count]
                if i == 0:
                    kept = sum(map(size_of, results[count:])) * length
                    allowed.hold(kept + sum(map(size_of, states)), f"after its {length:,} iterations")
                for part, result in zip(parts, results[count:], strict=True):
                    part.append(result)
        backwards = self.scan_output_directions or (0,) * outputs
        parts = [part[::-1] if back else part for part, back in zip(parts, backwards, strict=True)]
        places = zip(parts, self.body.outputs[count:], self.scan_output_axes or (0,) * outputs, strict=True)
        return (*states, *(collected(part, value, axis) for part, value, axis in places))

    def infer(self, *operands: ir.Value) -> list[Typed]:
        count, outputs = self._counts(len(operands))
        states = [typed(v) for v in operands[:count]]
        scanned = operands[count : count + self.num_scan_inputs]
        axes = self.scan_input_axes or (0,) * len(scanned)
        pairs = [per_iteration(v, axis) for v, axis in zip(scanned, axes, strict=True)]
        extent: Dim = next((d for _, d in pairs if isinstance(d, int)), pairs[0][1] if pairs else None)
        captured = [typed(v) for v in operands[count + self.num_scan_inputs :]]
        slices = [of for of, _ in pairs]
        states, results = settled(
            states, lambda types: infer_body(self.body, [*types, *slices, *captured]), 0
        )
        places = zip(results[count:], self.scan_output_axes or (0,) * outputs, strict=True)
        return [*states, *(of_elements(of, axis, extent) for of, axis in places)]

    def body_gradient(
        self,
        g: Builder,
        differentiate: Differentiate,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        *operands: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        count, outputs = self._counts(len(operands))
        states, captured = operands[:count], operands[count + self.num_scan_inputs :]
        scanned = operands[count : count + self.num_scan_inputs]
        again = (
            g.emit(
                "Scan",
                *operands,
                domain=ONWARD_DOMAIN,
                outputs=2 * count,
                body=keeping(g, self.body, count, range(count)),
                num_captured=len(captured),
                num_scan_inputs=self.num_scan_inputs,
                scan_input_axes=self.scan_input_axes,
                scan_input_directions=self.scan_input_directions,
            )[count:]
            if count
            else ()
        )

        def step(
            b: Builder, states: Sequence[ir.Value], slices: Sequence[ir.Value], captured: Sequence[ir.Value]
        ) -> list[ir.Value]:
            return inline(b, self.body, [*states, *slices, *captured])

        ways = zip(
            self.scan_input_axes or (0,) * len(scanned),
            self.scan_input_directions or (0,) * len(scanned),
            strict=True,
        )
        back = zip(
            dy[count:],
            self.scan_output_axes or (0,) * outputs,
            self.scan_output_directions or (0,) * outputs,
            strict=True,
        )
        to_states, to_scanned, to_captured = scan_backward(
            g,
            differentiate,
            step,
            list(zip(states, dy[:count], strict=True)),
            [Stacked(value) for value in again],
            [Stacked(value, *way) for value, way in zip(scanned, ways, strict=True)],
            captured,
            [None if d is None else Stacked(d, axis, direction) for d, axis, direction in back],
        )
        return (*to_states, *to_scanned, *to_captured)

    def expand(self, g: Builder, *operands: ir.Value) -> tuple[ir.Value, ...]:
        count = len(operands) - self.num_captured
        body = around(g, self.body, operands[count:])
        return g.emit(
            "Scan",
            *operands[:count],
            outputs=len(body.outputs),
            body=body,
            num_scan_inputs=self.num_scan_inputs,
            scan_input_axes=self.scan_input_axes,
            scan_input_directions=self.scan_input_directions,
            scan_output_axes=self.scan_output_axes,
            scan_output_directions=self.scan_output_directions,
        )


def _stacked(g: Builder, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    """The results of all iterations along a new axis."""
    return g.Concat(*[g.Unsqueeze(part, [axis]) for part in parts], axis=axis)


def _dtype(value: ir.Value) -> ir.DataType:
    return value.dtype if value.dtype is not None else ir.DataType.UNDEFINED

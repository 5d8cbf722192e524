"""Convolution's weight gradient, in tiles of input channels by output channels summed over pixels.

The sum is made in panels [group][tap row][tap column][input channel][output channels, padded]. Where all
panels fit a cache each thread sums its own share of the images into panels of its own, and `finish` adds
those in thread order; where they do not, each thread owns a part of the panels and goes through all images.
Both are reproducible bit for bit at a given number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onward.compile.codegen.builder import Function, Int, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.conv import check_halo, label
from onward.compile.kernels.kernel import Affine, Kernel, slot_values
from onward.compile.kernels.layout import Convolution, Weights
from onward.compile.kernels.tile import Tile, define, rows_for, split, vectors_for

__all__ = ["finish_weights", "partial_count", "partial_size", "weight_gradient"]

_OWN_PANELS = 384 << 10
"""Bytes of panels up to which every thread has its own."""

_PIXELS = (256, 1024)
"""Output pixels summed before a panel's tile is stored: with panels in the second-level cache the slices of x
and dy that one tile reads should stay in the first, with panels beyond it in the second."""


@dataclass(frozen=True)
class _Places:
    """Tiles of one shape: `count` places, `taps` times; rows at offsets `a` in x and `c` in a panel."""

    a: tuple[int, ...]
    c: tuple[int, ...]
    a0: int
    c0: int
    count: int
    a_step: int
    c_step: int
    taps: tuple[int, int]
    tap_steps: tuple[int, int]
    tap_rows: tuple[int, int]

    @property
    def total(self) -> int:
        return self.count * self.taps[0] * self.taps[1]


@dataclass(frozen=True)
class _Plan:
    vectors: int
    lanes: int
    outputs: int
    group: int
    rows: int
    places: tuple[_Places, ...]

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.width)

    @property
    def padded(self) -> int:
        return self.blocks * self.width

    @property
    def size(self) -> int:
        return self.group * self.rows * self.padded

    @property
    def own(self) -> bool:
        return self.size * 4 <= _OWN_PANELS


def _plan(conv: Convolution, target: Target) -> _Plan:
    vectors = vectors_for(target, conv.outputs)
    most = rows_for(target, vectors)
    plan = _Plan(
        vectors, target.lanes, conv.outputs, conv.group, conv.kernel[0] * conv.kernel[1] * conv.inputs, ()
    )
    return replace(plan, places=tuple(_places(conv, most, plan.padded)))


def _places(conv: Convolution, most: int, padded: int) -> list[_Places]:
    x = conv.x
    kh, kw = conv.kernel
    step_h, step_w = conv.dilations[0] * x.row, conv.dilations[1] * x.pixel
    depth = conv.inputs
    taps, tap_steps, tap_rows = (kh, kw), (step_h, step_w), (kw * depth, depth)
    if kw == 1 or step_w == depth:
        taps, tap_steps, tap_rows, depth = (kh, 1), (step_h, 0), (kw * depth, 0), kw * depth
    if depth * 2 <= most and taps != (1, 1):
        offsets = [
            i * tap_steps[0] + j * tap_steps[1] + k
            for i in range(taps[0])
            for j in range(taps[1])
            for k in range(depth)
        ]
        if len(offsets) <= 4 * most:
            found = []
            for size, first, count in split(len(offsets), most):
                for n in range(count):
                    start = first + n * size
                    found.append(
                        _Places(
                            tuple(offsets[start : start + size]),
                            tuple(m * padded for m in range(start, start + size)),
                            *(0, 0, 1, 0, 0, (1, 1), (0, 0), (0, 0)),
                        )
                    )
            return found
    return [
        _Places(
            a=tuple(range(size)),
            c=tuple(m * padded for m in range(size)),
            a0=first,
            c0=first * padded,
            count=count,
            a_step=size,
            c_step=size * padded,
            taps=taps,
            tap_steps=tap_steps,
            tap_rows=(tap_rows[0] * padded, tap_rows[1] * padded),
        )
        for size, first, count in split(depth, most)
    ]


def partial_size(conv: Convolution, target: Target) -> int:
    """Floats of one set of panels."""
    return _plan(conv, target).size


def partial_count(conv: Convolution, target: Target, threads: int) -> int:
    """How many sets of panels `weight_gradient` needs on `threads` threads."""
    return threads if _plan(conv, target).own else 1


def weight_gradient(conv: Convolution, target: Target) -> Kernel:
    """Panels of dw. Slots: a = x, b = dy, c = `partial_count` sets of panels, batch.

    Raises `ShapeError` when x's border is too small. dy may have any border, or none.
    """
    check_halo("x", conv.x, conv.input_halo())
    plan = _plan(conv, target)
    module = Module(target)
    f = module.entry()
    slots = ("a", "b", "c", "batch")
    values = slot_values(f, slots, frozenset(("batch",)))
    _Gradient(f, conv, plan, values).emit()
    f.ret()
    x, y = conv.x, conv.y
    return Kernel(
        name=f"conv_weight_gradient {x.height}x{x.width}x{x.channels} {y.channels}" + label(conv),
        ir=module.text(),
        slots=slots,
        flops=Affine(0, conv.flops),
        bytes=Affine(4 * plan.size, 4 * (x.elements + y.elements)),
        units=Affine(0, y.height) if plan.own else Affine(_units(plan)),
    )


def _units(plan: _Plan) -> int:
    return plan.group * plan.blocks * sum(p.total for p in plan.places)


class _Gradient:
    def __init__(self, f: Function, conv: Convolution, plan: _Plan, values: dict[str, Value]) -> None:
        self.f = f
        self.conv = conv
        self.plan = plan
        self.values = values
        y = conv.y
        self.height, self.width = y.height, y.width
        self.tiles = [
            {whole: self._tile(n, places, whole) for whole in (True, False) if self._blocks(whole)}
            for n, places in enumerate(plan.places)
        ]
        pixels = _PIXELS[0 if plan.own else 1]
        self.images = max(1, pixels // (y.height * y.width))
        self.rows = min(y.height, max(1, pixels // y.width))
        self.chunks = -(-self.height // self.rows)

    def _blocks(self, whole: bool) -> int:
        full = self.plan.outputs // self.plan.width
        return full if whole else self.plan.blocks - full

    def _tile(self, n: int, places: _Places, whole: bool) -> Function:
        plan, conv = self.plan, self.conv
        rest = plan.outputs % plan.width
        vectors = plan.vectors if whole else -(-rest // plan.lanes)
        tail = plan.lanes if whole else rest - (vectors - 1) * plan.lanes
        tile = Tile(
            a=places.a,
            c=places.c,
            vectors=vectors,
            tail=tail,
            k=self.width,
            a_step=conv.strides[1] * conv.x.pixel,
            b_step=conv.y.pixel,
            loops=((None, conv.x.size, conv.y.size), (None, conv.strides[0] * conv.x.row, conv.y.row)),
            accumulate=True,
            b_masked=True,
        )
        return define(self.f.module, f"tile_{n}_{'whole' if whole else 'rest'}", tile)

    def emit(self) -> None:
        """Clear this thread's panels or part of them, then add the images chunk by chunk."""
        f, plan, batch = self.f, self.plan, self.values["batch"]
        _, thread, threads = f.arguments
        if plan.own:
            panels = f.at(self.values["c"], thread * plan.size)
            with f.range(0, plan.size, f.lanes) as i:
                f.vstore(f.zero(), panels, i)
            if self.chunks == 1:
                low, high = f.share(batch, thread, threads)
                with f.range(low, high, self.images) as n:
                    self._sweep(panels, n, f.smin(self.images, high - n), 0, self.height)
                return
            low, high = f.share(batch * self.chunks, thread, threads)
            with f.range(low, high) as unit:
                self._rows(unit, lambda n, r, rows: self._sweep(panels, n, 1, r, rows))
            return
        low, high = f.share(_units(plan), thread, threads)
        panels = self.values["c"]
        with f.range(low, high) as unit:
            self._unit(unit, lambda w, p, places, a, c, g, q: self._clear(w, places, panels, c))
        if self.chunks == 1:
            with f.range(0, batch, self.images) as n, f.range(low, high) as unit:
                images = f.smin(self.images, batch - n)
                self._unit(
                    unit,
                    lambda w, p, places, a, c, g, q: self._call(
                        w, p, panels, a, c, g, q, n, images, 0, self.height
                    ),
                )
            return
        with f.range(0, batch * self.chunks) as chunk:
            self._rows(chunk, lambda n, r, rows: self._part(low, high, panels, n, r, rows))

    def _rows(self, unit: Value, body: Callable[..., None]) -> None:
        f = self.f
        n, r = unit // self.chunks, unit % self.chunks * self.rows
        body(n, r, f.smin(self.rows, self.height - r))

    def _part(self, low: Value, high: Value, panels: Value, n: Value, r: Value, rows: Value) -> None:
        with self.f.range(low, high) as unit:
            self._unit(
                unit,
                lambda w, p, places, a, c, g, q: self._call(w, p, panels, a, c, g, q, n, 1, r, rows),
            )

    def _unit(self, unit: Value, body: Callable[..., None]) -> None:
        """Decode a unit of the shared panels: group, channel block, place."""
        f, plan = self.f, self.plan
        places = sum(p.total for p in plan.places)
        panel, place = unit // places, unit % places
        g, q = panel // plan.blocks, panel % plan.blocks
        before = 0
        for p, group in enumerate(plan.places):
            inside = f.binary(
                "and",
                f.compare("sge", place, before),
                f.compare("slt", place, before + group.total),
            )
            with f.when(inside):
                index = place - before
                taps = group.taps[0] * group.taps[1]
                tap, j = index % taps, index // taps
                i0, i1 = tap // group.taps[1], tap % group.taps[1]
                a = j * group.a_step + i0 * group.tap_steps[0] + i1 * group.tap_steps[1] + group.a0
                c = j * group.c_step + i0 * group.tap_rows[0] + i1 * group.tap_rows[1] + group.c0
                c = c + g * (plan.rows * plan.padded) + q * plan.width
                for whole in (True, False):
                    if not self._blocks(whole):
                        continue
                    with f.when(f.compare("slt" if whole else "sge", q, self._blocks(True))):
                        body(whole, p, group, a, c, g, q)
            before += group.total

    def _sweep(self, panels: Value, n: Int, images: Int, r: Int, rows: Int) -> None:
        """Add some images or rows of one to all panels."""
        f, plan = self.f, self.plan
        for p, group in enumerate(plan.places):
            for whole in (True, False):
                if not self._blocks(whole):
                    continue
                with (
                    f.range(0, plan.group) as g,
                    f.range(0, self._blocks(whole)) as block,
                    f.range(0, group.count) as j,
                    f.range(0, group.taps[0]) as i0,
                    f.range(0, group.taps[1]) as i1,
                ):
                    q = block if whole else f.value(self._blocks(True))
                    a = j * group.a_step + i0 * group.tap_steps[0] + i1 * group.tap_steps[1] + group.a0
                    c = j * group.c_step + i0 * group.tap_rows[0] + i1 * group.tap_rows[1] + group.c0
                    c = c + g * (plan.rows * plan.padded) + q * plan.width
                    self._call(whole, p, panels, a, c, g, q, n, images, r, rows)

    def _call(
        self,
        whole: bool,
        p: int,
        panels: Value,
        a: Value,
        c: Value,
        g: Value,
        q: Value,
        n: Int,
        images: Int,
        r: Int,
        rows: Int,
    ) -> None:
        f, conv, plan = self.f, self.conv, self.plan
        x, y = conv.x, conv.y
        n, r = f.value(n), f.value(r)
        origin = x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel
        at = n * x.size + r * (conv.strides[0] * x.row) + a + g * conv.inputs + origin
        bt = n * y.size + r * y.row + g * conv.outputs + q * plan.width + y.origin
        f.invoke(
            self.tiles[p][whole],
            [f.at(self.values["a"], at), f.at(self.values["b"], bt), f.at(panels, c), images, rows],
        )

    def _clear(self, whole: bool, places: _Places, panels: Value, c: Value) -> None:
        f, plan = self.f, self.plan
        start = f.at(panels, c + places.c[0])
        with f.range(0, len(places.c)) as m:
            for v in range(plan.vectors):
                f.vstore(f.zero(), start, m * plan.padded + v * plan.lanes)


def finish_weights(
    conv: Convolution, target: Target, weights: Weights, *, accumulate: bool = False
) -> Kernel:
    """dw from panels, in any order of weights. Slots: c = panels, dw, parts = number of sets of panels.

    `accumulate` adds to what dw holds.
    """
    plan = _plan(conv, target)
    module = Module(target)
    f = module.entry()
    _, thread, threads = f.arguments
    slots = ("c", "dw", "parts")
    values = slot_values(f, slots, frozenset(("parts",)))
    lanes, (kh, kw) = target.lanes, conv.kernel
    vectors = plan.padded // lanes
    low, high = f.share(plan.group * conv.inputs * vectors, thread, threads)
    with f.range(low, high) as unit:
        row, v = unit // vectors, unit % vectors
        g, channel = row // conv.inputs, row % conv.inputs
        with f.range(0, kh * kw) as tap:
            at = ((g * (kh * kw) + tap) * conv.inputs + channel) * plan.padded + v * lanes
            source = f.at(values["c"], at)
            (total,) = f.loop(
                1,
                values["parts"],
                carry=[f.vload(source)],
                body=lambda i, c: [c[0] + f.vload(source, i * plan.size)],
            )
            first = v * lanes
            sink = f.at(
                values["dw"],
                (g * conv.outputs + first) * weights.output
                + channel * weights.input
                + tap // kw * weights.row
                + tap % kw * weights.column,
            )
            _scatter(f, total, sink, conv.outputs - first, weights.output, accumulate)
    f.ret()
    return Kernel(
        name="conv_weight_gradient_finish" + label(conv),
        ir=module.text(),
        slots=slots,
        bytes=Affine(4 * (plan.size + conv.weights)),
        units=Affine(plan.group * conv.inputs * vectors),
    )


def _scatter(f: Function, x: Value, sink: Value, left: Value, stride: int, accumulate: bool) -> None:
    """Store the lanes below `left` to elements `stride` apart."""
    if stride == 1:
        mask = f.mask(left)
        f.vstore(x + f.vload(sink, 0, mask) if accumulate else x, sink, 0, mask)
        return
    for lane in range(f.lanes):
        with f.when(f.compare("sgt", left, lane)):
            element = f.extract(x, lane)
            if accumulate:
                element = element + f.load(sink, "float", lane * stride)
            f.store(element, f.at(sink, lane * stride))

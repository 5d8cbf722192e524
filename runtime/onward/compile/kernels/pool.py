"""Max and average pooling over channels-last images, forward and backward; channels are in the lanes.

The gradient of max pooling finds each window's first maximum again from x and y instead of storing it. The
first NaN of a window counts as its maximum.

Gradients are written by rows of dx. Where windows do not overlap, a unit of work is a row of windows that
store to their taps; where they do, it is a band of rows, cleared first, that all windows reaching it add to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, slot_values, write
from onward.compile.kernels.layout import Image
from onward.errors import ShapeError

__all__ = ["Pool", "pool_backward", "pool_forward"]


@dataclass(frozen=True)
class Pool:
    """A window of `kind` "max" or "average". `pads` is (top, left, bottom, right), pairs (rows, columns).

    `count_include_pad` divides an average by the window's size; without it, by what of it is inside the
    image.
    """

    kind: str
    x: Image
    y: Image
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    count_include_pad: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in ("max", "average"):
            raise ShapeError(f"pooling of kind {self.kind!r}: choose max or average")
        if self.x.channels != self.y.channels:
            raise ShapeError(f"pooling of {self.x.channels} channels into {self.y.channels}")


def pool_forward(pool: Pool, target: Target) -> Kernel:
    """Slots: x, y, batch."""
    module = Module(_narrowed(target.typed(pool.dtype), pool.x.channels))
    f = module.entry()
    parameters = (*read("x"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    x, y = pool.x, pool.y
    low, high = f.share(values["batch"] * y.height, *f.arguments[1:])
    neutral = f.value(float("-inf") if pool.kind == "max" else 0.0, f.vector)
    with f.range(low, high) as unit:
        n, i = unit // y.height, unit % y.height
        for start, stop, inside in _columns(pool):
            with f.range(start, stop) as j:
                window = _Window(f, pool, i, j, inside)
                source = f.at(values["x"], n * x.size + window.origin)
                sink = f.at(values["y"], n * y.size + i * y.row + j * y.pixel + y.origin)
                _reduce(f, pool, window, source, sink, neutral)
    f.ret()
    return _kernel(f"{pool.kind}_pool", module, parameters, pool, y.height)


def _reduce(f: Function, pool: Pool, window: _Window, source: Value, sink: Value, neutral: Value) -> None:
    """One window's maximum or mean for all channels."""

    def block(first: Value, vectors: int, mask: Value | None) -> None:
        def tap(offset: Value, carry: list[Value]) -> list[Value]:
            found = [f.vload(source, offset + first + v * f.lanes, mask) for v in range(vectors)]
            if pool.kind == "max":
                return [f.maximum(c, e) for c, e in zip(carry, found, strict=True)]
            return [c + e for c, e in zip(carry, found, strict=True)]

        totals = window.taps([neutral] * vectors, tap)
        scale = window.scale() if pool.kind == "average" else None
        for v, total in enumerate(totals):
            f.vstore(total * scale if scale is not None else total, sink, first + v * f.lanes, mask)

    _blocks(f, pool.x.channels, f.module.target.tuning.pool_vectors, block)


def pool_backward(pool: Pool, target: Target) -> Kernel:
    """dx from dy. Slots: dy, dx, batch, and for max pooling x and y. dx's border is left alone."""
    module = Module(_narrowed(target.typed(pool.dtype), pool.x.channels))
    f = module.entry()
    tensors = (*read("dy"), *write("dx"), *(read("x", "y") if pool.kind == "max" else ()))
    parameters = (*tensors, *integer("batch"))
    values = slot_values(f, parameters)
    x, y = pool.x, pool.y
    rows, columns = (_Axis.of(pool, axis) for axis in range(2))
    disjoint = rows.disjoint and columns.disjoint
    height = min(x.height, module.target.tuning.pool_band * pool.strides[0])
    units = y.height if disjoint else -(-x.height // height)
    low, high = f.share(values["batch"] * units, *f.arguments[1:])
    with f.range(low, high) as unit:
        n, number = unit // units, unit % units
        if disjoint:
            # A row of windows owns the rows up to the next one; the last one owns what is left.
            first, stop = number, number + 1
            top = f.smax(0, number * rows.stride - rows.pad) if units > 1 else f.value(0)
            last = f.compare("eq", number, units - 1)
            bottom = f.select(last, f.value(x.height), f.smin(x.height, stop * rows.stride - rows.pad))
            bottom = f.smax(bottom, top)
        else:
            top = number * height
            bottom = f.smin(x.height, top + height)
            first = f.smax(0, top + (rows.pad - rows.reach + rows.stride - 1)) // rows.stride
            stop = f.smin(y.height, (bottom + (rows.pad - 1)) // rows.stride + 1)
        base = f.at(values["dx"], n * x.size + x.origin)
        if not (disjoint and rows.covered and columns.covered):
            with f.range(top, bottom) as i, f.range(0, x.width) as j:
                _clear(f, x.channels, f.at(base, i * x.row + j * x.pixel))
        for start, end, inside in _columns(pool):
            with f.range(first, stop) as i, f.range(start, end) as j:
                window = _Window(f, pool, i, j, inside)
                at_y = n * y.size + i * y.row + j * y.pixel + y.origin
                at_x = n * x.size + window.origin
                at = {"dy": at_y, "y": at_y, "dx": at_x, "x": at_x}
                pointers = {p.name: f.at(values[p.name], at[p.name]) for p in tensors}
                band = None if disjoint else (top, bottom)
                _spread(f, pool, window, pointers, band)
    f.ret()
    return _kernel(f"{pool.kind}_pool_backward", module, parameters, pool, units)


def _clear(f: Function, channels: int, sink: Value) -> None:
    def block(first: Value, vectors: int, mask: Value | None) -> None:
        for v in range(vectors):
            f.vstore(f.zero(), sink, first + v * f.lanes, mask)

    _blocks(f, channels, f.module.target.tuning.pool_vectors, block)


def _spread(
    f: Function, pool: Pool, window: _Window, pointers: dict[str, Value], band: tuple[Value, Value] | None
) -> None:
    """Give one window's gradient to its taps: all of them, or those in a band of rows that others share.

    Of max pooling, the first tap that holds the maximum gets it; from then on its lane carries zero.
    """
    lanes, sink = f.lanes, pointers["dx"]
    before, within = window.split(band)

    def block(first: Value, vectors: int, mask: Value | None) -> None:
        places = [first + v * lanes for v in range(vectors)]
        gradient = [f.vload(pointers["dy"], place, mask) for place in places]
        highest = [f.vload(pointers["y"], place, mask) for place in places] if pool.kind == "max" else []

        def give(offset: Value, v: int, share: Value) -> None:
            place = offset + places[v]
            f.vstore(share if band is None else f.vload(sink, place, mask) + share, sink, place, mask)

        def found(offset: Value, v: int) -> Value:
            element = f.vload(pointers["x"], offset + places[v], mask)
            return f.binary("or", f.compare("oeq", element, highest[v]), f.compare("uno", element, element))

        def skip(offset: Value, carry: list[Value]) -> list[Value]:
            return [f.select(found(offset, v), f.zero(), left) for v, left in enumerate(carry)]

        def tap(offset: Value, carry: list[Value]) -> list[Value]:
            left = list(carry)
            for v, rest in enumerate(carry):
                here = found(offset, v)
                give(offset, v, f.select(here, rest, f.zero()))
                left[v] = f.select(here, f.zero(), rest)
            return left

        def equal(offset: Value, carry: list[Value]) -> list[Value]:
            for v, share in enumerate(shares):
                give(offset, v, share)
            return carry

        if pool.kind == "average":
            scale = window.scale()
            shares = [g * scale for g in gradient]
            window.taps([], equal, within)
            return
        if before is not None:
            gradient = window.taps(gradient, skip, before)
        window.taps(gradient, tap, within)

    _blocks(f, pool.x.channels, f.module.target.tuning.pool_vectors // 2, block)


def _narrowed(target: Target, channels: int) -> Target:
    """A target of half or a quarter of the lanes where all channels fit: it crosses fewer cache lines."""
    vector = target.vector_bytes
    while vector > 16 and channels * target.nbytes <= vector // 2:
        vector //= 2
    return replace(target, vector_bytes=vector)


def _kernel(name: str, module: Module, parameters: tuple[Parameter, ...], pool: Pool, units: int) -> Kernel:
    taps = pool.kernel[0] * pool.kernel[1]
    tensors = len(parameters) - 1
    return Kernel(
        name=f"{name} {pool.x.height}x{pool.x.width}x{pool.x.channels} k{pool.kernel[0]}x{pool.kernel[1]}",
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, pool.y.elements * taps),
        bytes=Affine(0, module.target.nbytes * (pool.x.elements + pool.y.elements) * max(1, tensors // 2)),
        units=Affine(0, units),
    )


@dataclass(frozen=True)
class _Axis:
    """Windows along one axis.

    Attributes:
        disjoint: no position is a tap of two windows.
        covered: every position is a tap of some window.
    """

    stride: int
    pad: int
    reach: int
    disjoint: bool
    covered: bool

    @staticmethod
    def of(pool: Pool, axis: int) -> _Axis:
        size, count = (pool.x.height, pool.x.width)[axis], (pool.y.height, pool.y.width)[axis]
        kernel, stride, pad = pool.kernel[axis], pool.strides[axis], pool.pads[axis]
        dense = pool.dilations[axis] == 1 or kernel == 1
        return _Axis(
            stride,
            pad,
            (kernel - 1) * pool.dilations[axis],
            disjoint=count == 1 or (dense and stride >= kernel),
            covered=dense
            and (count == 1 or stride <= kernel)
            and (count - 1) * stride - pad + kernel >= size,
        )


def _columns(pool: Pool) -> list[tuple[int, int, bool]]:
    """Ranges of a row's windows, and whether all columns of those lie inside the image."""
    axis = _Axis.of(pool, 1)
    count = pool.y.width
    first = min(count, -(-axis.pad // axis.stride))
    stop = min(count, max(first, (pool.x.width - 1 - axis.reach + axis.pad) // axis.stride + 1))
    ranges = [(0, first, False), (first, stop, True), (stop, count, False)]
    return [part for part in ranges if part[0] < part[1]]


class _Window:
    """The taps of output pixel (i, j) that lie inside the image; `inside` promises that all columns do."""

    def __init__(self, f: Function, pool: Pool, i: Value, j: Value, inside: bool) -> None:
        self.f = f
        self.pool = pool
        x = pool.x
        self.first = (
            i * pool.strides[0] - pool.pads[0],
            j * pool.strides[1] - pool.pads[1],
        )
        columns = (0, pool.kernel[1]) if inside else self._range(1, x.width)
        self.ranges: list[tuple[Int, Int]] = [self._range(0, x.height), columns]
        # Offset of tap (0, 0), which may lie outside: only taps inside are loaded.
        self.origin = self.first[0] * x.row + self.first[1] * x.pixel + x.origin

    def _range(self, axis: int, size: int) -> tuple[Int, Int]:
        f, pool = self.f, self.pool
        kernel, dilation, first = pool.kernel[axis], pool.dilations[axis], self.first[axis]
        reach = (kernel - 1) * dilation
        count = (pool.y.height, pool.y.width)[axis]
        low: Int = 0
        high: Int = kernel
        if pool.pads[axis] > 0:
            low = f.smax(0, 0 - first)
            low = (low + (dilation - 1)) // dilation
        if (count - 1) * pool.strides[axis] - pool.pads[axis] + reach >= size:
            high = f.smin(kernel, (f.smax(0, size - first) + (dilation - 1)) // dilation)
        return low, high

    def split(self, band: tuple[Value, Value] | None) -> tuple[tuple[Int, Int] | None, tuple[Int, Int]]:
        """The ranges of tap rows before a band of x's rows and in it; all of them without a band."""
        low, high = self.ranges[0]
        if band is None:
            return None, (low, high)
        f, dilation = self.f, self.pool.dilations[0]
        start, stop = (
            f.smin(high, f.smax(low, (f.smax(0, edge - self.first[0]) + (dilation - 1)) // dilation))
            for edge in band
        )
        return (low, start), (start, stop)

    def taps(
        self,
        carry: Sequence[Value],
        body: Callable[[Value, list[Value]], list[Value]],
        rows: tuple[Int, Int] | None = None,
    ) -> list[Value]:
        """Run over the taps of some rows in order; the body gets the tap's offset from tap (0, 0)."""
        f, x, pool = self.f, self.pool.x, self.pool
        row, pixel = pool.dilations[0] * x.row, pool.dilations[1] * x.pixel

        def columns(r: Value, carry: list[Value]) -> list[Value]:
            return _few(f, self.ranges[1], carry, lambda c, inner: body(r * row + c * pixel, inner))

        return _few(f, rows or self.ranges[0], carry, columns)

    def scale(self) -> Value:
        """One over the number of elements of an average."""
        f, pool = self.f, self.pool
        if pool.count_include_pad:
            return f.value(1.0 / (pool.kernel[0] * pool.kernel[1]), f.vector)
        (r0, r1), (c0, c1) = self.ranges
        count = (f.value(r1) - r0) * (f.value(c1) - c0)
        return f.splat(1.0 / f.cast("sitofp", count, f.float))


def _few(
    f: Function,
    bounds: tuple[Int, Int],
    carry: Sequence[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    """A loop that carries values, written out when it is known to be short."""
    low, high = bounds
    if isinstance(low, int) and isinstance(high, int) and high - low <= f.module.target.tuning.pool_unrolled:
        out = list(carry)
        for number in range(low, high):
            out = body(f.value(number), out)
        return out
    return f.loop(low, high, carry=carry, body=body)


def _blocks(f: Function, channels: int, most: int, body: Callable[[Value, int, Value | None], None]) -> None:
    """All channels in blocks of `most` vectors, then of one, then what is left under a mask."""
    lanes = f.lanes
    whole = channels // (most * lanes) * (most * lanes)
    if whole:
        with f.range(0, whole, most * lanes) as first:
            body(first, most, None)
    single = channels // lanes * lanes
    if single > whole:
        with f.range(whole, single, lanes) as first:
            body(first, 1, None)
    if channels > single:
        body(f.value(single), 1, f.mask(channels - single))

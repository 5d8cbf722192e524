"""Max and average pooling over channels-last images, forward and backward; channels are in the lanes.

The gradient of max pooling finds each window's first maximum again from x and y instead of storing it. The
first NaN of a window counts as its maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Int, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Affine, Kernel, slot_values
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

    def __post_init__(self) -> None:
        if self.kind not in ("max", "average"):
            raise ShapeError(f"pooling of kind {self.kind!r}: choose max or average")
        if self.x.channels != self.y.channels:
            raise ShapeError(f"pooling of {self.x.channels} channels into {self.y.channels}")


def pool_forward(pool: Pool, target: Target) -> Kernel:
    """Slots: x, y, batch."""
    module = Module(target)
    f = module.entry()
    slots = ("x", "y", "batch")
    values = slot_values(f, slots, frozenset(("batch",)))
    x, y = pool.x, pool.y
    low, high = f.share(values["batch"] * y.height, *f.arguments[1:])
    neutral = f.value(float("-inf") if pool.kind == "max" else 0.0, f.vector)
    with f.range(low, high) as unit:
        n, i = unit // y.height, unit % y.height
        with f.range(0, y.width) as j:
            window = _Window(f, pool, i, j)
            source = f.at(values["x"], n * x.size + window.origin)
            sink = f.at(values["y"], n * y.size + i * y.row + j * y.pixel + y.origin)

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

            _blocks(f, x.channels, 4, block)
    f.ret()
    return _kernel(f"{pool.kind}_pool", module, slots, pool, y.height)


def pool_backward(pool: Pool, target: Target) -> Kernel:
    """dx from dy. Slots: dy, dx, batch, and for max pooling x and y. dx's border is left alone."""
    module = Module(target)
    f = module.entry()
    slots = ("dy", "dx", "x", "y", "batch") if pool.kind == "max" else ("dy", "dx", "batch")
    values = slot_values(f, slots, frozenset(("batch",)))
    x, y, lanes = pool.x, pool.y, target.lanes
    blocks = -(-x.channels // lanes)
    rest = x.channels % lanes
    low, high = f.share(values["batch"] * blocks, *f.arguments[1:])
    with f.range(low, high) as unit:
        n, b = unit // blocks, unit % blocks
        first = b * lanes
        mask = f.mask(x.channels - first) if rest else None
        base = f.at(values["dx"], n * x.size + x.origin + first)
        with f.range(0, x.height) as i, f.range(0, x.width) as j:
            f.vstore(f.zero(), base, i * x.row + j * x.pixel, mask)
        with f.range(0, y.height) as i, f.range(0, y.width) as j:
            window = _Window(f, pool, i, j)
            at_y = n * y.size + i * y.row + j * y.pixel + y.origin + first
            at_x = n * x.size + window.origin + first
            gradient = f.vload(f.at(values["dy"], at_y), 0, mask)
            sink = f.at(values["dx"], at_x)
            if pool.kind == "average":
                _spread(f, window, sink, gradient * window.scale(), mask)
            else:
                highest = f.vload(f.at(values["y"], at_y), 0, mask)
                _give(f, window, sink, f.at(values["x"], at_x), highest, gradient, mask)
    f.ret()
    return _kernel(f"{pool.kind}_pool_backward", module, slots, pool, blocks)


def _spread(f: Function, window: _Window, sink: Value, share: Value, mask: Value | None) -> None:
    """Add the same to every tap."""

    def tap(offset: Value, carry: list[Value]) -> list[Value]:
        f.vstore(f.vload(sink, offset, mask) + share, sink, offset, mask)
        return carry

    window.taps([], tap)


def _give(
    f: Function,
    window: _Window,
    sink: Value,
    source: Value,
    highest: Value,
    gradient: Value,
    mask: Value | None,
) -> None:
    """Add the gradient to the first tap that holds the maximum; from then on its lane carries zero."""

    def tap(offset: Value, carry: list[Value]) -> list[Value]:
        element = f.vload(source, offset, mask)
        here = f.binary("or", f.compare("oeq", element, highest), f.compare("uno", element, element))
        share = f.select(here, carry[0], f.zero())
        f.vstore(f.vload(sink, offset, mask) + share, sink, offset, mask)
        return [f.select(here, f.zero(), carry[0])]

    window.taps([gradient], tap)


def _kernel(name: str, module: Module, slots: tuple[str, ...], pool: Pool, units: int) -> Kernel:
    taps = pool.kernel[0] * pool.kernel[1]
    tensors = len(slots) - 1
    return Kernel(
        name=f"{name} {pool.x.height}x{pool.x.width}x{pool.x.channels} k{pool.kernel[0]}x{pool.kernel[1]}",
        ir=module.text(),
        slots=slots,
        flops=Affine(0, pool.y.elements * taps),
        bytes=Affine(0, 4 * (pool.x.elements + pool.y.elements) * max(1, tensors // 2)),
        units=Affine(0, units),
    )


class _Window:
    """The taps of output pixel (i, j) that lie inside the image."""

    def __init__(self, f: Function, pool: Pool, i: Value, j: Value) -> None:
        self.f = f
        self.pool = pool
        x = pool.x
        self.first = (
            i * pool.strides[0] - pool.pads[0],
            j * pool.strides[1] - pool.pads[1],
        )
        self.ranges = [self._range(axis, size) for axis, size in enumerate((x.height, x.width))]
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

    def taps(self, carry: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]) -> list[Value]:
        """Run over taps in order; the body gets the tap's offset from tap (0, 0)."""
        f, x, pool = self.f, self.pool.x, self.pool
        row, pixel = pool.dilations[0] * x.row, pool.dilations[1] * x.pixel
        return f.loop(
            *self.ranges[0],
            carry=carry,
            body=lambda r, outer: f.loop(
                *self.ranges[1], carry=outer, body=lambda c, inner: body(r * row + c * pixel, inner)
            ),
        )

    def scale(self) -> Value:
        """One over the number of elements of an average."""
        f, pool = self.f, self.pool
        if pool.count_include_pad:
            return f.value(1.0 / (pool.kernel[0] * pool.kernel[1]), f.vector)
        (r0, r1), (c0, c1) = self.ranges
        count = (f.value(r1) - r0) * (f.value(c1) - c0)
        return f.splat(1.0 / f.cast("sitofp", count, "float"))


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

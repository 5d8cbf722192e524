"""The weight gradient by Winograd: F(3x3, 2x2), the transpose of F(2x2, 3x3), with 2.25 times fewer products.

With the matrices of F(2x2, 3x3), y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, the gradient by g of one square of outputs
is Gᵀ [(A dy Aᵀ) ⊙ (Bᵀ d B)] G, and Gᵀ … G can wait until all squares are added: 16 independent products
[inputs x squares] · [squares x outputs]. The four positions of one row of the 4x4 squares are transformed at
a time, so that what is transformed stays in the second-level cache.

The sums are panels [position][input channel][output channel, padded]. Where all panels fit a cache each
thread sums its own share of the images; where they do not, each thread owns some positions and input channels
and goes through all images. Both are reproducible bit for bit at a given number of threads.

An infinity or NaN, which the transforms would spread, shows in the finished gradient. What is not finite
there is summed again without transforms.
"""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.conv import check_halo
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Weights
from onward.compile.kernels.tile import Tile
from onward.compile.kernels.winograd.blocking import (
    WinogradBlocking,
    blocks_of,
    tiles_of,
    winograd_blocking,
)
from onward.compile.kernels.winograd.problem import (
    ChunkPlace,
    chunk_of,
    forward_problem,
    winograd_input_halo,
)
from onward.compile.kernels.winograd.repair import any_not_finite, repaired

__all__ = [
    "winograd_finish_weights",
    "winograd_partial_count",
    "winograd_partial_size",
    "winograd_weight_gradient",
]


@dataclass(frozen=True)
class _Buffers:
    """The panels, and a chunk's transforms that a thread keeps; in elements."""

    blocking: WinogradBlocking

    @property
    def panel(self) -> int:
        """Sums at one position."""
        return self.blocking.inputs * self.blocking.padded

    @property
    def own(self) -> bool:
        """Whether each thread has panels of its own."""
        target = self.blocking.target
        return 16 * self.panel * target.nbytes <= target.tuning.winograd_weights_own

    @property
    def row(self) -> int:
        """A square's transformed inputs: odd in cache lines, so that squares differ in sets."""
        line = self.blocking.target.line
        return (-(-self.blocking.inputs // line) | 1) * line

    @property
    def a_plane(self) -> int:
        """Transformed inputs at one position."""
        return self.blocking.chunk.squares * self.row + self.blocking.target.line

    @property
    def b_block(self) -> int:
        """Transformed gradients of a block of channels at one position."""
        return self.blocking.chunk.squares * self.blocking.width + self.blocking.target.line

    @property
    def scratch(self) -> int:
        return 4 * (self.a_plane + self.blocking.blocks * self.b_block)


def _buffers(conv: Convolution, target: Target) -> _Buffers:
    target = target.typed(conv.dtype)
    tuning = target.tuning
    cached = tuning.winograd_weights_chunk // (4 * target.nbytes * (conv.inputs + conv.outputs))
    most = max(tuning.winograd_weights_least, min(tuning.winograd_weights_squares, cached))
    chunk = chunk_of(forward_problem(conv), most)
    return _Buffers(winograd_blocking(chunk, conv.inputs, conv.outputs, target, conv.inputs))


def winograd_partial_size(conv: Convolution, target: Target) -> int:
    """Elements of one set of panels."""
    return 16 * _buffers(conv, target).panel


def winograd_partial_count(conv: Convolution, target: Target, threads: int) -> int:
    """How many sets of panels `winograd_weight_gradient` needs on `threads` threads."""
    return threads if _buffers(conv, target).own else 1


def winograd_weight_gradient(conv: Convolution, target: Target) -> Kernel:
    """Panels of dw. Slots: a = x, b = dy, c = `winograd_partial_count` sets of panels, scratch, batch.

    Raises `ShapeError` when x's border is too small. dy may have any border, or none.
    """
    check_halo("x", conv.x, winograd_input_halo(conv))
    buffers = _buffers(conv, target)
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read("a", "b"), *write("c", "scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    _WeightGradient(f, conv, buffers, values).emit()
    f.ret()
    x, y = conv.x, conv.y
    blocking = buffers.blocking
    squares = blocking.chunk.total
    transforms = squares * (32 * x.channels + 12 * y.channels)
    return Kernel(
        name=f"winograd_weight_gradient {x.height}x{x.width}x{x.channels} {y.channels}",
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, squares * 32 * x.channels * y.channels + transforms),
        bytes=Affine(16 * target.nbytes * buffers.panel, target.nbytes * (x.elements + y.elements)),
        units=Affine(0, blocking.chunk.height) if buffers.own else Affine(4 * blocking.tiles),
        scratch=target.nbytes * buffers.scratch,
    )


class _WeightGradient:
    def __init__(self, f: Function, conv: Convolution, buffers: _Buffers, values: dict[str, Value]) -> None:
        self.f = f
        self.conv = conv
        self.buffers = buffers
        self.blocking = buffers.blocking
        self.values = values
        self.tiles = tiles_of(f.module, self.blocking, self._tile)
        inner = f.at(values["scratch"], f.arguments[1] * buffers.scratch)
        self.inner, self.outer = inner, f.at(inner, 4 * buffers.a_plane)

    def _tile(self, size: int, vectors: int) -> Tile:
        blocking = self.blocking
        return Tile(
            a=tuple(range(size)),
            c=tuple(m * blocking.padded for m in range(size)),
            vectors=vectors,
            tail=blocking.lanes,
            k=None,
            a_step=self.buffers.row,
            b_step=blocking.width,
            accumulate=True,
        )

    def emit(self) -> None:
        """Clear this thread's panels or part of them, then add the images chunk by chunk."""
        f, blocking, buffers = self.f, self.blocking, self.buffers
        chunk, batch = blocking.chunk, self.values["batch"]
        _, thread, threads = f.arguments
        panels = self.values["c"]
        if buffers.own:
            panels = f.at(panels, thread * (16 * buffers.panel))
            self._clear(panels, 0, 16 * buffers.panel)
            with chunk.share(f, batch, thread, threads) as place, f.range(0, 4) as i:
                self._add(panels, i, 0, blocking.tiles, place)
            return
        low, high = f.share(4 * blocking.tiles, thread, threads)
        with f.range(0, 4) as i:
            begin = f.smax(low - i * blocking.tiles, 0)
            end = f.smin(high - i * blocking.tiles, blocking.tiles)
            with f.when(f.compare("slt", begin, end)):
                first, last = self._channel(begin), self._channel(end)
                with f.range(0, 4) as q:
                    start = (i * 4 + q) * buffers.panel + first * blocking.padded
                    self._clear(f.at(panels, start), 0, (last - first) * blocking.padded)
                with chunk.share(f, batch, f.value(0), f.value(1)) as place:
                    self._add(panels, i, begin, end, place)

    def _channel(self, tile: Int) -> Value:
        """The first input channel of a tile."""
        pieces = self.blocking.pieces
        first = self.f.value(tile) * pieces[-1][0]
        return first if len(pieces) == 1 else first + self.f.smin(tile, pieces[0][2])

    def _clear(self, panels: Value, start: Int, end: Int) -> None:
        with self.f.range(start, end, self.f.lanes) as i:
            self.f.vstore(self.f.zero(), panels, i)

    def _add(self, panels: Value, i: Value, begin: Int, end: Int, place: ChunkPlace) -> None:
        """Add some squares to row i of the panels, for the tiles of input channels from begin to end."""
        f, blocking = self.f, self.blocking
        lanes, columns = blocking.lanes, blocking.chunk.columns
        lines = place.images * place.rows
        low = self._channel(begin) // lanes * lanes
        high = self._channel(end)
        with f.range(0, lines) as line:
            image, line_row = place.line(line)
            with f.range(0, columns) as j:
                self._transform_input(i, image, line_row, j, line * columns + j, low, high)
            with f.range(0, columns) as j:
                self._transform_gradient(i, image, line_row, j, line * columns + j)
        self._products(panels, i, begin, end, lines * columns)

    def _transform_input(
        self, i: Value, image: Value, row: Value, j: Value, square: Value, low: Value, high: Value
    ) -> None:
        """Row i of Bᵀ d B, its last position negated."""
        f, blocking, buffers, conv = self.f, self.blocking, self.buffers, self.conv
        x = conv.x
        at = image * x.size + row * (2 * x.row) + j * (2 * x.pixel)
        source = f.at(self.values["a"], at + (x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel))
        one = f.at(source, i * x.row)
        other = f.at(source, f.select(f.compare("slt", i, 2), f.value(2 * x.row), x.row))
        sign = f.splat(f.select(f.compare("eq", i, 1), f.value(1.0, f.float), f.value(-1.0, f.float)))
        sink = f.at(self.inner, square * buffers.row)
        tail = blocking.inputs % blocking.lanes

        def put(c: Value, mask: Value | None) -> None:
            d = [
                f.fma(sign, f.vload(other, c + q * x.pixel, mask), f.vload(one, c + q * x.pixel, mask))
                for q in range(4)
            ]
            for q, value in enumerate((d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1])):
                f.vstore(value, sink, c + q * buffers.a_plane)

        with f.range(low, f.smin(high, blocking.inputs - tail), blocking.lanes) as c:
            put(c, None)
        if tail:
            with f.when(f.compare("sgt", high, blocking.inputs - tail)):
                put(f.value(blocking.inputs - tail), f.mask(tail))

    def _transform_gradient(self, i: Value, image: Value, row: Value, j: Value, square: Value) -> None:
        """Row i of A dy Aᵀ, its last position negated; dy past an odd edge is zero."""
        f, blocking, y = self.f, self.blocking, self.conv.y
        source = f.at(self.values["b"], image * y.size + row * (2 * y.row) + j * (2 * y.pixel) + y.origin)
        zero, one = f.value(0.0, f.float), f.value(1.0, f.float)
        minus = f.value(-1.0, f.float)
        upper = f.select(f.compare("eq", i, 3), zero, one)
        lower = f.select(f.compare("eq", i, 0), zero, f.select(f.compare("eq", i, 2), minus, one))
        down, right = f.value(y.row), f.value(y.pixel)
        inside = outside = None
        if y.height % 2 and not y.bottom:
            inside = f.compare("slt", row, y.height // 2)
            down = f.select(inside, down, 0)
        if y.width % 2 and not y.right:
            outside = f.compare("slt", j, y.width // 2)
            right = f.select(outside, right, 0)
        factors = f.splat(upper), f.splat(lower)
        sink = f.at(self.outer, square * blocking.width)

        def part(at: Value, mask: Value | None) -> Value:
            above, below = f.vload(source, at, mask), f.vload(source, at + down, mask)
            if inside is not None:
                below = f.select(inside, below, f.zero())
            return f.fma(factors[1], below, factors[0] * above)

        def put(c: Value, v: Value, mask: Value | None) -> None:
            u, w = part(c, mask), part(c + right, mask)
            if outside is not None:
                w = f.select(outside, w, f.zero())
            block = v // blocking.vectors * self.buffers.b_block + v % blocking.vectors * blocking.lanes
            for q, value in enumerate((u, u + w, u - w, w)):
                f.vstore(value, sink, block + q * (blocking.blocks * self.buffers.b_block))

        whole, tail = divmod(blocking.outputs, blocking.lanes)
        with f.range(0, whole) as v:
            put(v * blocking.lanes, v, None)
        if tail:
            put(f.value(whole * blocking.lanes), f.value(whole), f.mask(tail))

    def _products(self, panels: Value, i: Value, begin: Int, end: Int, count: Value) -> None:
        f, blocking, buffers = self.f, self.blocking, self.buffers
        with f.range(0, 4) as q:
            a0 = f.at(self.inner, q * buffers.a_plane)
            b0 = f.at(self.outer, q * (blocking.blocks * buffers.b_block))
            c0 = f.at(panels, (i * 4 + q) * buffers.panel)
            before = 0
            for functions, (size, channel, number) in zip(self.tiles, blocking.pieces, strict=True):
                low, high = f.smax(begin, before), f.smin(end, before + number)
                with f.range(low, high) as tile:
                    m = (tile - before) * size + channel
                    for whole, block in blocks_of(f, blocking):
                        b = f.at(b0, block * buffers.b_block)
                        c = f.at(c0, m * blocking.padded + block * blocking.width)
                        f.invoke(functions[whole], [f.at(a0, m), b, c, count])
                before += number


def winograd_finish_weights(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """dw from panels, in any order of weights.

    Slots: c = panels, dw, parts = number of sets of panels, a = x, b = dy, batch. x and dy are read where
    the sums are not finite.
    """
    buffers = _buffers(conv, target)
    blocking = buffers.blocking
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    _, thread, threads = f.arguments
    parameters = (*read("c"), *write("dw"), *integer("parts"), *read("a", "b"), *integer("batch"))
    values = slot_values(f, parameters)
    lanes = target.lanes
    low, high = f.share(blocking.padded // lanes * blocking.inputs, thread, threads)
    with f.range(low, high) as unit:
        c, v = unit // (blocking.padded // lanes), unit % (blocking.padded // lanes)
        source = f.at(values["c"], c * blocking.padded + v * lanes)
        sums = f.loop(
            1,
            values["parts"],
            carry=[f.vload(source, p * buffers.panel) for p in range(16)],
            body=lambda i, carry: [
                one + f.vload(source, i * (16 * buffers.panel) + p * buffers.panel)
                for p, one in enumerate(carry)
            ],
        )
        columns = [_taps(*sums[q::4]) for q in range(4)]
        taps = [tap for i in range(3) for tap in _taps(*(column[i] for column in columns))]
        mask = _tail_mask(f, v, blocking)
        sink = f.at(values["dw"], v * lanes * weights.output + c * weights.input)
        for t, tap in enumerate(_finite_or_direct(f, conv, values, taps, c, v * lanes, mask)):
            f.scatter(tap, f.at(sink, t // 3 * weights.row + t % 3 * weights.column), weights.output, mask)
    f.ret()
    return Kernel(
        name="winograd_weight_gradient_finish",
        ir=module.text(),
        parameters=parameters,
        bytes=Affine(target.nbytes * (16 * buffers.panel + conv.weights)),
        units=Affine(blocking.padded // lanes * blocking.inputs),
    )


def _tail_mask(f: Function, v: Value, blocking: WinogradBlocking) -> Value | None:
    if blocking.padded == blocking.outputs:
        return None
    return f.mask(blocking.outputs - v * blocking.lanes)


def _taps(a: Value, b: Value, c: Value, d: Value) -> list[Value]:
    """Gᵀ of four positions."""
    half = (b + c) * 0.5
    return [a + half, (b - c) * 0.5, half + d]


def _finite_or_direct(
    f: Function,
    conv: Convolution,
    values: dict[str, Value],
    taps: list[Value],
    channel: Value,
    first: Value,
    mask: Value | None,
) -> list[Value]:
    """The nine taps' gradients, those that are not finite summed again over all pixels without transforms."""
    x, y = conv.x, conv.y
    x0 = f.at(values["a"], channel + (x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel))
    y0 = f.at(values["b"], first + y.origin)

    def pixel(n: Value, i: Value, j: Value, carry: list[Value]) -> list[Value]:
        source = f.at(x0, n * x.size + i * x.row + j * x.pixel)
        dy = f.vload(y0, n * y.size + i * y.row + j * y.pixel, mask)
        return [
            f.fma(f.broadcast(source, t // 3 * x.row + t % 3 * x.pixel), dy, one)
            for t, one in enumerate(carry)
        ]

    def again(_: Value, carry: list[Value]) -> list[Value]:
        def image(n: Value, carry: list[Value]) -> list[Value]:
            def row(i: Value, carry: list[Value]) -> list[Value]:
                return f.loop(0, y.width, carry=carry, body=lambda j, inner: pixel(n, i, j, inner))

            return f.loop(0, y.height, carry=carry, body=row)

        direct = f.loop(0, values["batch"], carry=[f.zero()] * 9, body=image)
        return repaired(f, carry, direct)

    return f.loop(0, any_not_finite(f, taps), carry=taps, body=again)

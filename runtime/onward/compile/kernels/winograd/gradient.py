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

from onward.compile.codegen.builder import Function, Int, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.conv import check_halo
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Weights
from onward.compile.kernels.tile import Tile, define, rows_for, split, vectors_for
from onward.compile.kernels.winograd.problem import (
    Chunk,
    Place,
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
class _Plan:
    chunk: Chunk
    inputs: int
    outputs: int
    lanes: int
    vectors: int
    target: Target
    pieces: tuple[tuple[int, int, int], ...]
    """Input channels by tiles: (size, first channel, count)."""

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def padded(self) -> int:
        """Output channels up to a whole vector."""
        return -(-self.outputs // self.lanes) * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.padded // self.width)

    @property
    def panel(self) -> int:
        return self.inputs * self.padded

    @property
    def own(self) -> bool:
        return 16 * self.panel * self.target.nbytes <= self.target.tuning.winograd_weights_own

    @property
    def tiles(self) -> int:
        return sum(count for _, _, count in self.pieces)

    @property
    def row(self) -> int:
        """Elements of a square's transformed inputs: odd in cache lines, so that squares differ in sets."""
        return (-(-self.inputs // self.target.line) | 1) * self.target.line

    @property
    def a_plane(self) -> int:
        return self.chunk.squares * self.row + self.target.line

    @property
    def b_block(self) -> int:
        return self.chunk.squares * self.width + self.target.line

    @property
    def scratch(self) -> int:
        return 4 * (self.a_plane + self.blocks * self.b_block)


def _plan(conv: Convolution, target: Target) -> _Plan:
    target = target.typed(conv.dtype)
    tuning = target.tuning
    vectors = vectors_for(target, conv.outputs)
    pieces = tuple(split(conv.inputs, rows_for(target, vectors)))
    cached = tuning.winograd_weights_chunk // (4 * target.nbytes * (conv.inputs + conv.outputs))
    most = max(tuning.winograd_weights_least, min(tuning.winograd_weights_squares, cached))
    chunk = chunk_of(forward_problem(conv), most)
    return _Plan(chunk, conv.inputs, conv.outputs, target.lanes, vectors, target, pieces)


def winograd_partial_size(conv: Convolution, target: Target) -> int:
    """Elements of one set of panels."""
    return 16 * _plan(conv, target).panel


def winograd_partial_count(conv: Convolution, target: Target, threads: int) -> int:
    """How many sets of panels `winograd_weight_gradient` needs on `threads` threads."""
    return threads if _plan(conv, target).own else 1


def winograd_weight_gradient(conv: Convolution, target: Target) -> Kernel:
    """Panels of dw. Slots: a = x, b = dy, c = `winograd_partial_count` sets of panels, scratch, batch.

    Raises `ShapeError` when x's border is too small. dy may have any border, or none.
    """
    check_halo("x", conv.x, winograd_input_halo(conv))
    plan = _plan(conv, target)
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read("a", "b"), *write("c", "scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    _Gradient(f, conv, plan, values).emit()
    f.ret()
    x, y = conv.x, conv.y
    squares = plan.chunk.total
    transforms = squares * (32 * x.channels + 12 * y.channels)
    return Kernel(
        name=f"winograd_weight_gradient {x.height}x{x.width}x{x.channels} {y.channels}",
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, squares * 32 * x.channels * y.channels + transforms),
        bytes=Affine(16 * target.nbytes * plan.panel, target.nbytes * (x.elements + y.elements)),
        units=Affine(0, plan.chunk.height) if plan.own else Affine(4 * plan.tiles),
        scratch=target.nbytes * plan.scratch,
    )


class _Gradient:
    def __init__(self, f: Function, conv: Convolution, plan: _Plan, values: dict[str, Value]) -> None:
        self.f = f
        self.conv = conv
        self.plan = plan
        self.values = values
        self.whole = plan.padded // plan.width
        self.tiles = [
            {whole: self._tile(size, n, whole) for whole in (True, False) if self._blocks(whole)}
            for n, (size, _, _) in enumerate(plan.pieces)
        ]
        inner = f.at(values["scratch"], f.arguments[1] * plan.scratch)
        self.inner, self.outer = inner, f.at(inner, 4 * plan.a_plane)

    def _blocks(self, whole: bool) -> int:
        return self.whole if whole else self.plan.blocks - self.whole

    def _tile(self, size: int, n: int, whole: bool) -> Function:
        plan = self.plan
        vectors = plan.vectors if whole else plan.padded % plan.width // plan.lanes
        tile = Tile(
            a=tuple(range(size)),
            c=tuple(m * plan.padded for m in range(size)),
            vectors=vectors,
            tail=plan.lanes,
            k=None,
            a_step=plan.row,
            b_step=plan.width,
            accumulate=True,
        )
        return define(self.f.module, f"tile_{n}_{'whole' if whole else 'rest'}", tile)

    def emit(self) -> None:
        """Clear this thread's panels or part of them, then add the images chunk by chunk."""
        f, plan, chunk, batch = self.f, self.plan, self.plan.chunk, self.values["batch"]
        _, thread, threads = f.arguments
        panels = self.values["c"]
        if plan.own:
            panels = f.at(panels, thread * (16 * plan.panel))
            self._clear(panels, 0, 16 * plan.panel)
            with chunk.share(f, batch, thread, threads) as place, f.range(0, 4) as i:
                self._add(panels, i, 0, plan.tiles, place)
            return
        low, high = f.share(4 * plan.tiles, thread, threads)
        with f.range(0, 4) as i:
            begin = f.smax(low - i * plan.tiles, 0)
            end = f.smin(high - i * plan.tiles, plan.tiles)
            with f.when(f.compare("slt", begin, end)):
                first, last = self._channel(begin), self._channel(end)
                with f.range(0, 4) as q:
                    start = (i * 4 + q) * plan.panel + first * plan.padded
                    self._clear(f.at(panels, start), 0, (last - first) * plan.padded)
                with chunk.share(f, batch, f.value(0), f.value(1)) as place:
                    self._add(panels, i, begin, end, place)

    def _channel(self, tile: Int) -> Value:
        """The first input channel of a tile."""
        pieces = self.plan.pieces
        first = self.f.value(tile) * pieces[-1][0]
        return first if len(pieces) == 1 else first + self.f.smin(tile, pieces[0][2])

    def _clear(self, panels: Value, start: Int, end: Int) -> None:
        with self.f.range(start, end, self.f.lanes) as i:
            self.f.vstore(self.f.zero(), panels, i)

    def _add(self, panels: Value, i: Value, begin: Int, end: Int, place: Place) -> None:
        """Add some squares to row i of the panels, for the tiles of input channels from begin to end."""
        f, plan = self.f, self.plan
        lanes, columns = plan.lanes, plan.chunk.columns
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
        """Row i of Bᵀ d B, its last position with the sign turned."""
        f, plan, conv = self.f, self.plan, self.conv
        x = conv.x
        at = image * x.size + row * (2 * x.row) + j * (2 * x.pixel)
        source = f.at(self.values["a"], at + (x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel))
        one = f.at(source, i * x.row)
        other = f.at(source, f.select(f.compare("slt", i, 2), f.value(2 * x.row), x.row))
        sign = f.splat(f.select(f.compare("eq", i, 1), f.value(1.0, f.float), f.value(-1.0, f.float)))
        sink = f.at(self.inner, square * plan.row)
        tail = plan.inputs % plan.lanes

        def put(c: Value, mask: Value | None) -> None:
            d = [
                f.fma(sign, f.vload(other, c + q * x.pixel, mask), f.vload(one, c + q * x.pixel, mask))
                for q in range(4)
            ]
            for q, value in enumerate((d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1])):
                f.vstore(value, sink, c + q * plan.a_plane)

        with f.range(low, f.smin(high, plan.inputs - tail), plan.lanes) as c:
            put(c, None)
        if tail:
            with f.when(f.compare("sgt", high, plan.inputs - tail)):
                put(f.value(plan.inputs - tail), f.mask(tail))

    def _transform_gradient(self, i: Value, image: Value, row: Value, j: Value, square: Value) -> None:
        """Row i of A dy Aᵀ, its last position with the sign turned; dy past an odd edge is zero."""
        f, plan, y = self.f, self.plan, self.conv.y
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
        sink = f.at(self.outer, square * plan.width)

        def part(at: Value, mask: Value | None) -> Value:
            above, below = f.vload(source, at, mask), f.vload(source, at + down, mask)
            if inside is not None:
                below = f.select(inside, below, f.zero())
            return f.fma(factors[1], below, factors[0] * above)

        def put(c: Value, v: Value, mask: Value | None) -> None:
            u, w = part(c, mask), part(c + right, mask)
            if outside is not None:
                w = f.select(outside, w, f.zero())
            block = v // plan.vectors * plan.b_block + v % plan.vectors * plan.lanes
            for q, value in enumerate((u, u + w, u - w, w)):
                f.vstore(value, sink, block + q * (plan.blocks * plan.b_block))

        whole, tail = divmod(plan.outputs, plan.lanes)
        with f.range(0, whole) as v:
            put(v * plan.lanes, v, None)
        if tail:
            put(f.value(whole * plan.lanes), f.value(whole), f.mask(tail))

    def _products(self, panels: Value, i: Value, begin: Int, end: Int, count: Value) -> None:
        f, plan = self.f, self.plan
        with f.range(0, 4) as q:
            a0 = f.at(self.inner, q * plan.a_plane)
            b0 = f.at(self.outer, q * (plan.blocks * plan.b_block))
            c0 = f.at(panels, (i * 4 + q) * plan.panel)
            before = 0
            for tiles, (size, channel, number) in zip(self.tiles, plan.pieces, strict=True):
                low, high = f.smax(begin, before), f.smin(end, before + number)
                with f.range(low, high) as tile:
                    m = (tile - before) * size + channel
                    for whole, function in tiles.items():
                        with f.range(0, self._blocks(whole)) as index:
                            block = index if whole else f.value(self.whole)
                            b = f.at(b0, block * plan.b_block)
                            c = f.at(c0, m * plan.padded + block * plan.width)
                            f.invoke(function, [f.at(a0, m), b, c, count])
                before += number


def winograd_finish_weights(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """dw from panels, in any order of weights.

    Slots: c = panels, dw, parts = number of sets of panels, a = x, b = dy, batch. x and dy are read where
    the sums are not finite.
    """
    plan = _plan(conv, target)
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    _, thread, threads = f.arguments
    parameters = (*read("c"), *write("dw"), *integer("parts"), *read("a", "b"), *integer("batch"))
    values = slot_values(f, parameters)
    lanes = target.lanes
    low, high = f.share(plan.padded // lanes * plan.inputs, thread, threads)
    with f.range(low, high) as unit:
        c, v = unit // (plan.padded // lanes), unit % (plan.padded // lanes)
        source = f.at(values["c"], c * plan.padded + v * lanes)
        sums = f.loop(
            1,
            values["parts"],
            carry=[f.vload(source, p * plan.panel) for p in range(16)],
            body=lambda i, carry: [
                one + f.vload(source, i * (16 * plan.panel) + p * plan.panel) for p, one in enumerate(carry)
            ],
        )
        columns = [_taps(*sums[q::4]) for q in range(4)]
        taps = [tap for i in range(3) for tap in _taps(*(column[i] for column in columns))]
        mask = _tail_mask(f, v, plan)
        sink = f.at(values["dw"], v * lanes * weights.output + c * weights.input)
        for t, tap in enumerate(_finite_or_direct(f, conv, values, taps, c, v * lanes, mask)):
            f.scatter(tap, f.at(sink, t // 3 * weights.row + t % 3 * weights.column), weights.output, mask)
    f.ret()
    return Kernel(
        name="winograd_weight_gradient_finish",
        ir=module.text(),
        parameters=parameters,
        bytes=Affine(target.nbytes * (16 * plan.panel + conv.weights)),
        units=Affine(plan.padded // lanes * plan.inputs),
    )


def _tail_mask(f: Function, v: Value, plan: _Plan) -> Value | None:
    if plan.padded == plan.outputs:
        return None
    return f.mask(plan.outputs - v * plan.lanes)


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

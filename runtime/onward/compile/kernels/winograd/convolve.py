"""Winograd convolution forward and backward-data, which is the same with the taps flipped.

Each square of outputs comes from a square of inputs that is two wider: inputs are transformed, and the
positions of transformed squares are independent matrix products over channels.

Work goes by chunks of squares. While products are made, the next chunk's inputs and this one's outputs are
brought to the second-level cache.

An infinity or NaN, which the transforms would spread, shows in the outputs of its squares. Squares that are
not finite are summed again without transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.conv import check_halo
from onward.compile.kernels.expression import emit
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.tile import IDENTITY, Epilogue, Tile
from onward.compile.kernels.winograd.blocking import (
    WinogradBlocking,
    blocks_of,
    tiles_of,
    winograd_blocking,
)
from onward.compile.kernels.winograd.problem import (
    ChunkPlace,
    Problem,
    backward_problem,
    chunk_of,
    forward_problem,
    winograd_gradient_halo,
    winograd_input_halo,
)
from onward.compile.kernels.winograd.repair import any_not_finite, repaired
from onward.compile.kernels.winograd.scheme import Scheme, scheme_of

__all__ = ["winograd_backward_data", "winograd_forward"]


def winograd_forward(
    conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY, *, size: int = 2
) -> Kernel:
    """y = epilogue(x * w) by F(size x size, 3x3), size 2 or 4.

    Slots: a = x, b = packed weights, c = y, e0, ..., scratch, batch. Raises `ShapeError` when x's border is
    too small.
    """
    check_halo("x", conv.x, winograd_input_halo(conv, size))
    return _convolve("winograd_forward", conv, forward_problem(conv, size), target, epilogue)


def winograd_backward_data(
    conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY, *, size: int = 2
) -> Kernel:
    """dx = epilogue(gradient) by F(size x size, 3x3), size 2 or 4.

    Slots: a = dy, b = weights packed for backward, c = dx, e0, ..., scratch, batch. Raises `ShapeError` when
    dy's border is too small.
    """
    check_halo("dy", conv.y, winograd_gradient_halo(conv, size))
    return _convolve("winograd_backward_data", conv, backward_problem(conv, size), target, epilogue)


@dataclass(frozen=True)
class _Buffers:
    """A chunk's transformed inputs and products, which a thread keeps at each position; in elements."""

    blocking: WinogradBlocking
    positions: int

    @property
    def plane(self) -> int:
        """Transformed inputs at one position: odd in cache lines, so that positions differ in sets."""
        return self._odd(self.blocking.chunk.squares * self.blocking.inputs)

    @property
    def product(self) -> int:
        """Products at one position."""
        return self._odd(self.blocking.chunk.squares * self.blocking.padded)

    @property
    def scratch(self) -> int:
        return self.positions * (self.plane + self.product)

    def _odd(self, elements: int) -> int:
        """At least so many elements in an odd number of cache lines."""
        line = self.blocking.target.line
        return -(-elements // (2 * line)) * 2 * line + line


def _convolve(name: str, conv: Convolution, problem: Problem, target: Target, epilogue: Epilogue) -> Kernel:
    source, sink = problem.source, problem.sink
    target = target.typed(conv.dtype)
    scheme = scheme_of(problem.size)
    chunk = chunk_of(problem, target.tuning.winograd_squares)
    blocking = winograd_blocking(chunk, source.channels, sink.channels, target, chunk.squares)
    buffers = _Buffers(blocking, scheme.positions)
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(epilogue.operands)))
    parameters = (*read("a", "b"), *write("c"), *read(*extra), *write("scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    _Winograd(f, problem, scheme, buffers, epilogue, values).emit()
    f.ret()
    squares, n, m, nbytes = chunk.total, scheme.extent, scheme.size, target.nbytes
    transforms = squares * (scheme.flops[0] * source.channels + scheme.flops[1] * sink.channels)
    return Kernel(
        name=f"{name} {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}"
        + ("" if m == 2 else f" F{m}"),
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, squares * 2 * n * n * source.channels * sink.channels + transforms),
        bytes=Affine(
            nbytes * n * n * source.channels * sink.channels,
            nbytes * (source.elements + sink.elements * (1 + epilogue.operands.count("full"))),
        ),
        units=Affine(0, chunk.height),
        scratch=nbytes * buffers.scratch,
    )


class _Winograd:
    def __init__(
        self,
        f: Function,
        problem: Problem,
        scheme: Scheme,
        buffers: _Buffers,
        epilogue: Epilogue,
        values: dict[str, Value],
    ) -> None:
        self.f = f
        self.problem = problem
        self.scheme = scheme
        self.buffers = buffers
        self.blocking = buffers.blocking
        self.epilogue = epilogue
        self.values = values
        self.tiles = tiles_of(f.module, self.blocking, self._tile)
        self.inner = f.at(values["scratch"], f.arguments[1] * buffers.scratch)
        self.outer = f.at(self.inner, scheme.positions * buffers.plane)

    def _tile(self, size: int, vectors: int) -> Tile:
        blocking = self.blocking
        return Tile(
            a=tuple(m * blocking.inputs for m in range(size)),
            c=tuple(m * blocking.padded for m in range(size)),
            vectors=vectors,
            tail=blocking.lanes,
            k=blocking.inputs,
            a_step=1,
            b_step=blocking.width,
        )

    def emit(self) -> None:
        f, chunk, batch = self.f, self.blocking.chunk, self.values["batch"]
        _, thread, threads = f.arguments
        with chunk.share(f, batch, thread, threads) as place:
            self._inputs(place)
            self._products(place)
            self._outputs(place)

    def _products(self, place: ChunkPlace) -> None:
        f, blocking, buffers = self.f, self.blocking, self.buffers
        panel, tiles = blocking.inputs * blocking.width, blocking.tiles
        count = place.images * place.rows * blocking.chunk.columns
        prefetches = self._prefetches(place, buffers.positions * blocking.blocks * tiles)
        with f.range(0, buffers.positions) as position:
            for whole, block in blocks_of(f, blocking):
                call = (position * blocking.blocks + block) * tiles
                b = f.at(self.values["b"], (position * blocking.blocks + block) * panel)
                before = 0
                for functions, (size, first, pieces) in zip(self.tiles, blocking.pieces, strict=True):
                    needed = (f.smax(count - first, 0) + (size - 1)) // size
                    with f.range(0, f.smin(needed, pieces)) as t:
                        square = t * size + first
                        a = position * buffers.plane + square * blocking.inputs
                        c = position * buffers.product + square * blocking.padded + block * blocking.width
                        for pointer, lines in prefetches:
                            for line in range(lines):
                                at = ((call + t + before) * lines + line) * blocking.target.line
                                f.prefetch(pointer, at)
                        f.invoke(functions[whole], [f.at(self.inner, a), b, f.at(self.outer, c)])
                    before += pieces

    def _prefetches(self, place: ChunkPlace, calls: int) -> list[tuple[Value, int]]:
        """Images that come next: where they start, and cache lines for each of so many calls."""
        f, chunk, problem = self.f, self.blocking.chunk, self.problem
        x, y, size = problem.source, problem.sink, problem.size

        def spread(name: str, image: Image, start: Value) -> tuple[Value, int]:
            elements = chunk.images * image.size if chunk.images > 1 else size * chunk.rows * image.row
            return f.at(self.values[name], start), -(-elements // (self.blocking.target.line * calls))

        here = place.n * y.size + place.first * (size * y.row) + y.origin
        results = ["c", *(f"e{e}" for e, kind in enumerate(self.epilogue.operands) if kind == "full")]
        return [spread("a", x, place.following(x, size)), *(spread(name, y, here) for name in results)]

    def _corner(self, place: ChunkPlace, line: Value) -> Value:
        """Where the inputs of a line's first square start."""
        x, size = self.problem.source, self.problem.size
        image, row = place.line(line)
        at = image * x.size + row * (size * x.row)
        return at + (x.origin - self.problem.top * x.row - self.problem.left * x.pixel)

    def _inputs(self, place: ChunkPlace) -> None:
        """Bᵀ d B of all squares, a vector of channels of a line of squares at a time."""
        f, inputs, columns = self.f, self.blocking.inputs, self.blocking.chunk.columns
        with f.range(0, place.images * place.rows) as line:
            source = f.at(self.values["a"], self._corner(place, line))
            sink = f.at(self.inner, line * (columns * inputs))
            for start, end, mask in _channel_ranges(f, inputs):
                with f.range(start, end, f.lanes) as c:
                    self._transform_line(f.at(source, c), f.at(sink, c), mask)

    def _transform_line(self, source: Value, sink: Value, mask: Value | None) -> None:
        """Neighbouring squares share two columns of inputs, which are kept transformed along the rows."""
        f, scheme, x = self.f, self.scheme, self.problem.source
        n, inputs, plane = scheme.extent, self.blocking.inputs, self.buffers.plane

        def column(at: Int) -> list[Value]:
            return scheme.input([f.vload(source, at + r * x.row, mask) for r in range(n)])

        def square(j: Value, carry: list[Value]) -> list[Value]:
            at = j * (scheme.size * x.pixel)
            columns = [carry[:n], carry[n:], *(column(at + q * x.pixel) for q in range(2, n))]
            for r in range(n):
                for q, value in enumerate(scheme.input([one[r] for one in columns])):
                    f.vstore(value, sink, j * inputs + (r * n + q) * plane, mask)
            return columns[-2] + columns[-1]

        f.loop(0, self.blocking.chunk.columns, carry=column(0) + column(x.pixel), body=square)

    def _outputs(self, place: ChunkPlace) -> None:
        f = self.f
        with f.range(0, place.images * place.rows) as line:
            image, i = place.line(line)
            corner = self._corner(place, line)
            with f.range(0, self.blocking.chunk.columns) as j:
                self._transform_output(image, i, j, line * self.blocking.chunk.columns + j, corner)

    def _transform_output(self, image: Value, i: Value, j: Value, square: Value, corner: Value) -> None:
        f, scheme, problem = self.f, self.scheme, self.problem
        x, y, n, m = problem.source, problem.sink, scheme.extent, scheme.size
        source = f.at(self.outer, square * self.blocking.padded)
        at = image * y.size + i * (m * y.row) + j * (m * y.pixel) + y.origin
        inputs = f.at(self.values["a"], corner + j * (m * x.pixel))
        for start, end, mask in _channel_ranges(f, y.channels):
            with f.range(start, end, f.lanes) as c:
                columns = [
                    scheme.output(
                        [f.vload(source, c + (r * n + q) * self.buffers.product, mask) for r in range(n)]
                    )
                    for q in range(n)
                ]
                outputs = [v for r in range(m) for v in scheme.output([column[r] for column in columns])]
                outputs = f.loop(
                    0,
                    any_not_finite(f, outputs),
                    carry=outputs,
                    body=lambda _, carry: repaired(f, carry, self._directly(inputs, c)),
                )
                for r in range(m):
                    for q in range(m):
                        self._store(outputs[r * m + q], i, j, r, q, at, c, mask)

    def _directly(self, source: Value, c: Value) -> list[Value]:
        """The outputs of the square at `source`, channels from c, by the nine taps."""
        f, blocking, x, m = self.f, self.blocking, self.problem.source, self.scheme.size
        plane = blocking.inputs * blocking.blocks * blocking.width
        block, inside = c // blocking.width, c % blocking.width
        start = block * (blocking.inputs * blocking.width) + inside
        taps = f.at(self.values["b"], start + self.scheme.positions * plane)

        def tap(t: Value, k: Value, carry: list[Value]) -> list[Value]:
            weight = f.vload(taps, k * blocking.width + t * plane)
            at = f.at(source, k + t // 3 * x.row + t % 3 * x.pixel)
            return [
                f.fma(f.broadcast(at, p // m * x.row + p % m * x.pixel), weight, one)
                for p, one in enumerate(carry)
            ]

        def channel(k: Value, carry: list[Value]) -> list[Value]:
            return f.loop(0, 9, carry=carry, body=lambda t, inner: tap(t, k, inner))

        return f.loop(0, blocking.inputs, carry=[f.zero()] * (m * m), body=channel)

    def _store(
        self, value: Value, i: Value, j: Value, r: int, q: int, at: Value, c: Value, mask: Value | None
    ) -> None:
        """One output pixel through the epilogue, unless it lies past the image's edge."""
        f, y, m = self.f, self.problem.sink, self.scheme.size
        inside: Value | None = None
        if r >= y.height % m > 0:
            inside = f.compare("slt", i, y.height // m)
        if q >= y.width % m > 0:
            column = f.compare("slt", j, y.width // m)
            inside = column if inside is None else f.binary("and", inside, column)

        def put() -> None:
            place = at + c + (r * y.row + q * y.pixel)
            operands = [value]
            for e, kind in enumerate(self.epilogue.operands):
                operands.append(f.vload(self.values[f"e{e}"], place if kind == "full" else c, mask))
            (result,) = emit(f, [self.epilogue.expression], operands)
            f.vstore(result, self.values["c"], place, mask)

        if inside is None:
            put()
        else:
            with f.when(inside):
                put()


def _channel_ranges(f: Function, channels: int) -> Sequence[tuple[int, int, Value | None]]:
    """Ranges of channels: (first, end, mask)."""
    whole = channels // f.lanes * f.lanes
    found: list[tuple[int, int, Value | None]] = [(0, whole, None)] if whole else []
    if channels > whole:
        found.append((whole, whole + 1, f.mask(channels - whole)))
    return found

"""Local response normalization over channels-last images: sums over neighbouring channels of each pixel.

A pixel's summands go to a row of scratch memory with zeros on both sides first, so that sums at the first and
last channels need no case of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen import math
from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Image
from onward.errors import ShapeError

__all__ = ["Response", "response_backward", "response_forward"]


@dataclass(frozen=True)
class Response:
    """base = bias + alpha / size · Σ x² over `size` channels, from floor((size − 1) / 2) below a channel on.

    `images` are those of the kernel's tensors in the order of its slots, with the same pixels and channels.
    """

    images: tuple[Image, ...]
    size: int
    alpha: float
    beta: float
    bias: float
    dtype: str = "float32"

    def __post_init__(self) -> None:
        extents = {(i.height, i.width, i.channels) for i in self.images}
        if len(extents) != 1:
            raise ShapeError(f"normalization of images of different extents: {sorted(extents)}")


def response_forward(spec: Response, target: Target) -> Kernel:
    """y = x · base^−beta. Slots: x, y, scratch, batch."""
    return _Writer(spec, target, ("x", "y")).kernel("local_response", _forward)


def response_backward(spec: Response, target: Target) -> Kernel:
    """dx = dy · base^−beta − 2 alpha beta / size · x · Σ dy · x · base^(−beta − 1).

    Slots: dy, x, dx, scratch, batch.
    """
    return _Writer(spec, target, ("dy", "x", "dx")).kernel("local_response_backward", _backward)


class _Writer:
    def __init__(self, spec: Response, target: Target, tensors: tuple[str, ...]) -> None:
        self.spec = spec
        self.target = target = target.typed(spec.dtype)
        self.tensors = tensors
        self.module = Module(target)
        self.f = self.module.entry()
        self.parameters = (*read(*tensors[:-1]), *write(tensors[-1], "scratch"), *integer("batch"))
        self.values = slot_values(self.f, self.parameters)
        lanes, channels = target.lanes, spec.images[0].channels
        self.channels = channels
        self.margin = -(-spec.size // lanes) * lanes
        self.row = self.margin + -(-channels // lanes) * lanes + self.margin
        self.below, self.above = (spec.size - 1) // 2, spec.size // 2
        self.pixel: dict[str, Value] = {}

    def kernel(self, name: str, body: object) -> Kernel:
        """Run `body(writer, rows)` for every pixel; rows are two rows of scratch, past their margin."""
        f, spec = self.f, self.spec
        image = spec.images[0]
        width = 2 * self.row
        scratch = f.at(self.values["scratch"], f.arguments[1] * width)
        with f.range(0, width, f.lanes) as i:
            f.vstore(f.zero(), scratch, i)
        rows = [f.at(scratch, self.margin + r * self.row) for r in range(2)]
        low, high = f.share(self.values["batch"] * image.height, *f.arguments[1:])
        with f.range(low, high) as unit:
            n, i = unit // image.height, unit % image.height
            with f.range(0, image.width) as j:
                for tensor, place in zip(self.tensors, spec.images, strict=True):
                    at = n * place.size + i * place.row + j * place.pixel + place.origin
                    self.pixel[tensor] = f.at(self.values[tensor], at)
                body(self, rows)  # type: ignore[operator]
        f.ret()
        elements = image.elements
        return Kernel(
            name=f"{name} {image.height}x{image.width}x{image.channels}",
            ir=self.module.text(),
            parameters=self.parameters,
            flops=Affine(0, elements * (2 * spec.size + 30)),
            bytes=Affine(0, self.target.nbytes * elements * len(self.tensors)),
            units=Affine(0, image.height),
            scratch=self.target.nbytes * width,
        )

    def blocks(self, body: object) -> None:
        """`body(first channel, mask)` for all channels; lanes outside the mask are zero."""
        f, lanes = self.f, self.f.lanes
        whole = self.channels // lanes * lanes
        if whole:
            with f.range(0, whole, lanes) as first:
                body(first, None)  # type: ignore[operator]
        if self.channels > whole:
            body(f.value(whole), f.mask(self.channels - whole))  # type: ignore[operator]

    def squares(self, row: Value, x: Value) -> None:
        """Write x² of the pixel to a scratch row."""
        f = self.f

        def block(first: Value, mask: Value | None) -> None:
            value = f.vload(x, first, mask)
            f.vstore(value * value, row, first)

        self.blocks(block)

    def sums(self, row: Value, first: Value, below: int, above: int) -> Value:
        """Sums of a scratch row from `below` under a channel to `above` over it."""
        f = self.f
        total: Value | None = None
        for shift in range(-min(below, self.channels - 1), min(above, self.channels - 1) + 1):
            element = f.vload(row, first + shift)
            total = element if total is None else total + element
        assert total is not None
        return total

    def base(self, row: Value, first: Value) -> Value:
        """bias + alpha / size · Σ."""
        spec = self.spec
        return self.sums(row, first, self.below, self.above) * (spec.alpha / spec.size) + spec.bias


def _power(f: Function, x: Value, beta: float) -> Value:
    """x^−beta."""
    if beta == 0.75:
        root = f.sqrt(x)
        return 1.0 / (root * f.sqrt(root))
    if beta == 0.5:
        return math.rsqrt(f, x)
    if beta == 1.0:
        return 1.0 / x
    return math.exp(f, math.log(f, x) * -beta)


def _forward(w: _Writer, rows: list[Value]) -> None:
    f = w.f
    w.squares(rows[0], w.pixel["x"])

    def block(first: Value, mask: Value | None) -> None:
        x = f.vload(w.pixel["x"], first, mask)
        f.vstore(x * _power(f, w.base(rows[0], first), w.spec.beta), w.pixel["y"], first, mask)

    w.blocks(block)


def _backward(w: _Writer, rows: list[Value]) -> None:
    f, spec = w.f, w.spec
    w.squares(rows[0], w.pixel["x"])

    def ratios(first: Value, mask: Value | None) -> None:
        base = w.base(rows[0], first)
        x = f.vload(w.pixel["x"], first, mask)
        direct = f.vload(w.pixel["dy"], first, mask) * _power(f, base, spec.beta)
        ratio = direct * x / base
        if mask is not None:
            # A base of 0 or NaN past the last channel must not reach the sums.
            ratio = f.select(mask, ratio, f.zero())
        f.vstore(ratio, rows[1], first)
        f.vstore(direct, w.pixel["dx"], first, mask)

    def block(first: Value, mask: Value | None) -> None:
        x = f.vload(w.pixel["x"], first, mask)
        direct = f.vload(w.pixel["dx"], first, mask)
        along = w.sums(rows[1], first, w.above, w.below)
        factor = 2 * spec.alpha * spec.beta / spec.size
        f.vstore(direct - x * factor * along, w.pixel["dx"], first, mask)

    w.blocks(ratios)
    w.blocks(block)

"""Dropout whose bits are Philox words of (seed, step, salt, position): the same as the NumPy kernel's.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, section 3.3, Philox2x32-10.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.walk import flat, merge, nested
from onward.errors import ShapeError

__all__ = ["Dropout", "dropout"]

_MULTIPLIER = 0xD256D193
_WEYL = 0x9E3779B9
_ROUNDS = 10
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Dropout:
    """y = x / (1 − ratio) where the element's number u >= ratio, else 0, over [batch, *shape].

    `x` and `y` are strides in elements, `position` those of the elements' numbers; the last of each is 0 or 1
    for x, 1 for y. There are less than 2³² elements. `shared`: numbers begin at a · elements / n for [a, n].
    """

    shape: tuple[int, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    position: tuple[int, ...]
    ratio: float
    salt: int
    dtype: str = "float32"
    shared: bool = False

    def __post_init__(self) -> None:
        if self.x[-1] not in (0, 1) or self.y[-1] != 1:
            raise ShapeError(f"dropout along strides {self.x[-1]} and {self.y[-1]}")


def dropout(spec: Dropout, target: Target) -> Kernel:
    """Slots: x, y, seed and step (addresses of int64), maybe share (that of two), batch."""
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    scalars = ("seed", "step", "share") if spec.shared else ("seed", "step")
    parameters = (*read("x"), *write("y"), *read(*scalars), *integer("batch"))
    values = slot_values(f, parameters)
    seed, step = (f.load(values[name], "i64") for name in ("seed", "step"))
    low = f.binary("and", seed, _LOW)
    key = _scalar_rounds(f, low, f.binary("lshr", seed, 32), f.value(spec.salt & _LOW))
    keys = []
    for _ in range(_ROUNDS):
        keys.append(f.splat(key))
        key = f.binary("and", f.binary("add", key, _WEYL), _LOW)
    counter = f.splat(step)
    multiple, sizes, walks = merge(spec.shape, [spec.x, spec.y, spec.position])
    first: Value | None = None
    if spec.shared:
        start, count = (f.load(values["share"], "i64", i) for i in range(2))
        first = start * (values["batch"] * math.prod(spec.shape)) // count
    body = _Body(f, spec, values["x"], values["y"], keys, counter, first)
    total = values["batch"] * multiple
    if sizes:
        nested(f, total, sizes, walks, body)
    else:
        flat(f, total, body, [w[0] for w in walks])
    f.ret()
    elements = math.prod(spec.shape)
    return Kernel(
        name="dropout",
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, 6 * _ROUNDS * elements),
        bytes=Affine(0, 2 * target.nbytes * elements),
        units=Affine(0, max(1, elements // 64)),
    )


def _scalar_rounds(f: Function, c0: Value, c1: Value, key: Value) -> Value:
    for _ in range(_ROUNDS):
        product = f.instruction("i64", f"mul i64 {c0.ref}, {_MULTIPLIER}")
        high = f.binary("lshr", product, 32)
        c0, c1 = f.binary("xor", f.binary("xor", high, key), c1), f.binary("and", product, _LOW)
        key = f.binary("and", f.binary("add", key, _WEYL), _LOW)
    return c0


def _single(x: float) -> float:
    """Rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


@final
class _Body:
    def __init__(
        self,
        f: Function,
        spec: Dropout,
        x: Value,
        y: Value,
        keys: Sequence[Value],
        counter: Value,
        first: Value | None,
    ) -> None:
        self.f = f
        self.x = x
        self.y = y
        self.keys = keys
        self.counter = counter
        self.first = first
        self.ratio = _single(spec.ratio)
        self.scale = 1.0 / (1.0 - spec.ratio)

    def run(self, starts: Sequence[Value], steps: Sequence[int], low: Value, high: Value) -> None:
        f, lanes = self.f, self.f.lanes
        whole = low + (high - low) // lanes * lanes
        with f.range(low, whole, lanes) as i:
            self._vector(starts, steps, i, None)
        with f.range(whole, high, lanes) as i:
            self._vector(starts, steps, i, f.mask(high - i))

    def _vector(self, starts: Sequence[Value], steps: Sequence[int], i: Value, mask: Value | None) -> None:
        f, lanes = self.f, self.f.lanes
        words = f"<{lanes} x i32>"
        place = starts[2] + i * steps[2]
        if self.first is not None:
            place = place + self.first
        first = f.splat(f.cast("trunc", place, "i32"))
        ids = f.lane_ids("i32")
        bits = self._rounds(f.binary("add", first, f.binary("mul", ids, f.value(steps[2], words))))
        uniform = f.cast("sitofp", f.binary("lshr", bits, f.value(8, words)), f.vector)
        keep = f.compare("oge", uniform * 2.0**-24, self.ratio)
        x = f.vload(self.x, starts[0] + i, mask) if steps[0] else f.broadcast(self.x, starts[0])
        f.vstore(f.select(keep, x * self.scale, f.zero()), self.y, starts[1] + i, mask)

    def _rounds(self, position: Value) -> Value:
        """Words in the low halves of 64-bit lanes: what the high halves hold is never looked at."""
        f = self.f
        wide = f"<{f.lanes} x i64>"
        c0, c1 = f.cast("zext", position, wide), self.counter
        for key in self.keys:
            product = f.binary("mul", f.binary("and", c0, f.value(_LOW, wide)), f.value(_MULTIPLIER, wide))
            high = f.binary("lshr", product, f.value(32, wide))
            c0, c1 = f.binary("xor", f.binary("xor", high, key), c1), product
        return f.cast("trunc", c0, f"<{f.lanes} x i32>")

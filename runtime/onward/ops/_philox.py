"""Philox2x32-10: random words as a pure function of a counter and a key.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, section 3.3. The 64-bit counter is (position, step), the 32-bit key is itself a Philox word of the
64-bit seed under the salt: every (seed, step, salt, position) has its word, whichever engine draws it, in
whichever order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder

__all__ = ["uniform", "uniform_body"]

_MULTIPLIER = 0xD256D193
_WEYL = 0x9E3779B9
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def _philox(c0: Array, c1: Array, key: Array) -> Array:
    """The first output word. All three are uint64 arrays with values below 2**32."""
    low, half = np.uint64(_LOW), np.uint64(32)
    for _ in range(_ROUNDS):
        product = c0 * np.uint64(_MULTIPLIER)
        c0, c1 = (product >> half) ^ key ^ c1, product & low
        key = (key + np.uint64(_WEYL)) & low
    return c0


def uniform(seed: int, step: int, salt: int, shape: tuple[int, ...], first: int = 0) -> Array:
    """float32 numbers in [0, 1) with 24 random bits each, of a shape, for positions from `first` on."""
    low, half = np.uint64(_LOW), np.uint64(32)
    seed_word = np.array([seed]).astype(np.uint64)
    step_word = np.array([step]).astype(np.uint64) & low
    key = _philox(seed_word & low, seed_word >> half, np.array([salt], np.uint64))
    position = np.arange(first, first + int(np.prod(shape)), dtype=np.uint64) & low
    bits = _philox(position, step_word, key)
    return ((bits >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape)


def _philox_body(g: Builder, c0: ir.Value, c1: ir.Value, key: ir.Value) -> ir.Value:
    def word(value: int) -> ir.Value:
        return g.const(value, ir.DataType.UINT64)

    for _ in range(_ROUNDS):
        product = g.Mul(c0, word(_MULTIPLIER))
        high = g.BitShift(product, word(32), direction="RIGHT")
        c0 = g.BitwiseXor(g.BitwiseXor(high, key), c1)
        c1 = g.BitwiseAnd(product, word(_LOW))
        key = g.BitwiseAnd(g.Add(key, word(_WEYL)), word(_LOW))
    return c0


def uniform_body(
    g: Builder, seed: ir.Value, step: ir.Value, salt: int, like: ir.Value, first: ir.Value | None = None
) -> ir.Value:
    """The same numbers in standard operators, shaped as `like`; seed, step and `first` are int64 scalars."""
    uint64 = int(ir.DataType.UINT64)
    low, half = g.const(_LOW, ir.DataType.UINT64), g.const(32, ir.DataType.UINT64)
    seed_word, step_word = g.Cast(seed, to=uint64), g.Cast(step, to=uint64)
    key = _philox_body(
        g,
        g.BitwiseAnd(seed_word, low),
        g.BitShift(seed_word, half, direction="RIGHT"),
        g.const(salt, ir.DataType.UINT64),
    )
    places = g.Range(g.const(0, ir.DataType.INT64), g.Size(like), g.const(1, ir.DataType.INT64))
    if first is None:
        position = g.Cast(places, to=uint64)
    else:
        position = g.BitwiseAnd(g.Cast(g.Add(places, first), to=uint64), low)
    bits = _philox_body(g, position, g.BitwiseAnd(step_word, low), key)
    high_bits = g.BitShift(bits, g.const(8, ir.DataType.UINT64), direction="RIGHT")
    flat = g.Mul(g.Cast(high_bits, to=int(ir.DataType.FLOAT)), 2.0**-24)
    return g.reshape_like(flat, like)

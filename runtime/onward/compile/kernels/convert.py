"""Tensors in another element type: computed, or looked up where a type has few numbers.

Types that no processor computes with (float8, float4, int4, int2) are read from a table of what each of their
bytes is, and written from one of what each 2-byte number becomes. A float32 becomes the 2-byte float that has
its upper bits, the last of them set where lower bits are lost: that rounds on to the same number as float32,
as float8 and float4 have two bits of precision fewer at least (rounding to odd; Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen.builder import Module
from onward.compile.codegen.conversions import STORAGE, converted
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write

__all__ = ["Lookup", "convert", "lookup"]


def convert(source: str, target_type: str, target: Target) -> Kernel:
    """y[i] = x[i] in another type, for both of `STORAGE`. Slots: x, y, batch (the number of elements)."""
    wide = max(STORAGE[source][1], STORAGE[target_type][1])
    target = target.typed("float64" if wide == 8 else "float32")
    module = Module(target)
    f = module.entry()
    parameters = (*read("x"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    block = target.tuning.element_block * target.lanes
    low, high = f.share((values["batch"] + (block - 1)) // block, *f.arguments[1:])
    last = f.smin(high * block, values["batch"])
    with f.range(low * block, last, target.lanes) as i:
        mask = f.mask(last - i)
        x = f.vload(values["x"], i, mask, STORAGE[source][0])
        f.vstore(converted(f, x, source, target_type), values["y"], i, mask)
    f.ret()
    moved = STORAGE[source][1] + STORAGE[target_type][1]
    name = f"convert {source} to {target_type}"
    return Kernel(name, module.text(), parameters, Affine(0, 1), Affine(0, moved), Affine(0, 1))


@dataclass(frozen=True)
class Lookup:
    """Which entry of a table each element is.

    Attributes:
        source: bytes of an element; of 4 bytes, float32 rounded to odd.
        target: bytes of an entry.
    """

    source: int
    target: int


def lookup(spec: Lookup, target: Target) -> Kernel:
    """y[i] = table[x[i]]. Slots: x, table, y, batch (the number of elements)."""
    module = Module(target)
    f = module.entry()
    parameters = (*read("x", "table"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    low, high = f.share(values["batch"], *f.arguments[1:])
    bits, entry = f"i{8 * spec.source}", f"i{8 * spec.target}"
    with f.range(low, high) as i:
        x = f.load(values["x"], bits, i)
        place = _odd(x) if spec.source == 4 else x
        f.store(f.load(values["table"], entry, f.cast("zext", place, "i64")), values["y"], i)
    f.ret()
    name = f"convert by a table of {1 << 8 * min(spec.source, 2)}"
    moved = spec.source + 2 * spec.target
    return Kernel(name, module.text(), parameters, Affine(0, 1), Affine(0, moved), Affine(0, 1))


def _odd(x: Value) -> Value:
    """The upper half of a number's bits, the last one set where the lower half is not 0."""
    f = x.function
    lost = f.compare("ne", f.binary("and", x, 0xFFFF), 0)
    return f.binary("or", f.binary("lshr", x, 16), f.cast("zext", lost, "i32"))

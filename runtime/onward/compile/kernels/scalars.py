"""Arithmetic of a few numbers: the factors that an optimiser's update shares."""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, read, slot_values, write

__all__ = ["adam_factors"]


def adam_factors(
    beta1: float, beta2: float, weight_decay: float, target: Target, dtype: str = "float32"
) -> Kernel:
    """y = [η / (1 − β1^t), sqrt(1 − β2^t), 1 − η weight_decay]. Slots: learning_rate, t (int64), y.

    Powers are computed in double and rounded once; everything else is of the element type, as in the NumPy
    kernel.
    """
    target = target.typed(dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read("learning_rate", "t"), *write("y"))
    values = slot_values(f, parameters)
    with f.when(f.compare("eq", f.arguments[1], 0)):
        rate, time = f.load(values["learning_rate"]), f.load(values["t"], "i64")
        one = f.value(1.0, f.float)
        scales = [one - _power(f, beta, time) for beta in (beta1, beta2)]
        f.store(rate / scales[0], values["y"], 0)
        f.store(f.sqrt(scales[1]), values["y"], 1)
        f.store(f.exact("fsub", one, f.exact("fmul", rate, weight_decay)), values["y"], 2)
    f.ret()
    cost = Affine(4 * target.nbytes + 8)
    return Kernel("adam_factors", module.text(), parameters, flops=Affine(500), bytes=cost, units=Affine(1))


def _power(f: Function, base: float, exponent: Value) -> Value:
    """A number of the element type to an int64 power of 0 or more."""

    def wide(x: Value) -> Value:
        return x if x.type == "double" else f.cast("fpext", x, "double")

    def times(a: Value, b: Value) -> Value:
        return f.instruction("double", f"fmul double {a.ref}, {b.ref}")

    def bit(i: Value, carry: list[Value]) -> list[Value]:
        product, square, rest = carry
        odd = f.compare("ne", f.binary("and", rest, 1), 0)
        product = f.instruction(
            "double",
            f"select i1 {odd.ref}, double {times(product, square).ref}, double {product.ref}",
        )
        return [product, times(square, square), f.binary("lshr", rest, 1)]

    start = [wide(f.value(1.0, f.float)), wide(f.value(base, f.float)), exponent]
    product, _, _ = f.loop(0, 63, carry=start, body=bit)
    return product if f.float == "double" else f.cast("fptrunc", product, f.float)

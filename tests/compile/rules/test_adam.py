"""Adam: factors of a step once, then an element-wise pass for each parameter."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.compile.rules.checks import check
from tests.compile.units import floats

from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


def test_factors_are_shared() -> None:
    def build(g: Builder) -> list[ir.Value]:
        rate, t = floats(g, "rate"), g.input("t", I64, ())
        results: list[ir.Value] = []
        for i in range(2):
            operands = [floats(g, f"{name}{i}", 8) for name in "pgmv"]
            results += g.emit(
                "AdamUpdate",
                *operands,
                rate,
                t,
                domain="ai.onward",
                outputs=3,
                beta1=0.9,
                beta2=0.99,
                epsilon=1e-8,
            )
        return results

    moments = {f"v{i}": np.linspace(0.1, 1, 8, dtype=np.float32) for i in range(2)}
    check(build, ["adam_factors", "element", "element"], {**moments, "t": np.array(3)})

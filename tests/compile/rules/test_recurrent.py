"""LSTM, GRU and RNN: a product with W for all steps and one call for each direction."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from tests.compile.rules.checks import check, declined
from tests.compile.units import floats, kinds, lowered_of

from onward.graph import Builder

I64, F16 = ir.DataType.INT64, ir.DataType.FLOAT16


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_values(op_type: str, gates: int, direction: str) -> None:
    size, directions = 5, 2 if direction == "bidirectional" else 1

    def build(g: Builder) -> list[ir.Value]:
        x, w = floats(g, "x", 4, 3, 6), floats(g, "w", directions, gates * size, 6)
        r = floats(g, "r", directions, gates * size, size)
        extra = {"direction": direction}
        if op_type == "RNN":
            extra["activations"] = ["Tanh"] * directions  # type: ignore[assignment]
        return list(g.emit(op_type, x, w, r, outputs=2, hidden_size=size, **extra))  # type: ignore[arg-type]

    found = kinds(lowered_of(build))
    assert "numpy" not in found
    assert found.count(op_type) == directions
    check(build, found)


def test_an_activation_without_a_kernel_is_declined() -> None:
    declined(
        lambda g: g.emit(
            "RNN",
            floats(g, "x", 4, 3, 6),
            floats(g, "w", 1, 5, 6),
            floats(g, "r", 1, 5, 5),
            hidden_size=5,
            activations=["Softplus"],
        )[0],
        "activation softplus",
    )

from __future__ import annotations

import io
from typing import Any

import onnx_ir as ir
import pytest

from onward import nn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def network() -> nn.Network:
    return nn.Sequential(
        [
            nn.Conv2D(8, 3, 2, "same", groups=2, activation="relu", name="conv"),
            nn.BatchNorm(name="norm"),
            nn.ConvTranspose2D(2, 2, 2, name="up"),
            nn.Flatten(name="flat"),
            nn.Dropout(name="drop"),
            nn.Dense(5, name="fc"),
        ],
        input_shape=(4, 6, 6),
        name="net",
    )


def test_counts(network: nn.Network) -> None:
    summary = network.summary()
    rows = {layer.name: layer for layer in summary.layers}
    assert list(rows) == ["input", "conv", "norm", "up", "flat", "drop", "fc"]
    assert rows["conv"].operators == ("Conv", "Relu")
    assert rows["conv"].output_shape == ("N", 8, 3, 3)
    assert (rows["conv"].parameters, rows["conv"].macs) == (8 * 2 * 9 + 8, 72 * 2 * 9)
    assert (rows["norm"].parameters, rows["norm"].statistics) == (16, 16)
    assert (rows["up"].parameters, rows["up"].macs) == (8 * 2 * 4 + 2, 72 * 2 * 4)
    assert (rows["drop"].parameters, rows["drop"].macs) == (0, 0)
    assert (rows["fc"].parameters, rows["fc"].macs) == (72 * 5 + 5, 72 * 5)
    assert summary.parameters == 152 + 16 + 66 + 365
    assert summary.statistics == 16
    assert summary.macs == 1296 + 576 + 360


def test_plain_text_and_terminal(network: nn.Network, capsys: pytest.CaptureFixture[str]) -> None:
    summary = network.summary()
    text = str(summary)
    assert "fc     Gemm" in text
    assert text.endswith("599 parameters, 16 running statistics, 2,232 MACs a sample")
    summary.show()
    assert capsys.readouterr().out == text + "\n"
    drawn = Terminal()
    summary.show(drawn)
    for word in ("conv", "Conv, Relu", "[N, 8, 3, 3]", "1,296"):
        assert word in drawn.getvalue()
    assert "┃" in drawn.getvalue()


def test_shared_parameters_count_once() -> None:
    x = nn.Input((4,))
    layer = nn.Dense(4)
    assert nn.Model(x, layer(layer(x))).summary().parameters == 20
    assert nn.Model(x, layer(layer(x))).summary().macs == 32


def test_sequences() -> None:
    lstm = nn.Sequential([nn.LSTM(5)], input_shape=(7, 3)).summary()
    assert lstm.macs == 7 * 4 * 5 * (3 + 5)
    assert lstm.parameters == 4 * 5 * (3 + 5) + 8 * 5
    attention = nn.Sequential([nn.SelfAttention(2)], input_shape=(7, 6)).summary()
    assert attention.macs == 4 * 7 * 6 * 6 + 2 * 7 * 7 * 6
    assert attention.parameters == 4 * (36 + 6)


def test_unknown_extents_are_said_to_be_unknown() -> None:
    summary = nn.Sequential(
        [nn.Conv1D(2, 3, name="conv"), nn.GlobalMaxPool(), nn.Dense(2)], input_shape=(4, "T")
    ).summary()
    assert summary.layers[1].macs is None
    assert summary.macs is None
    assert "unknown MACs" in str(summary)


def test_any_model_has_a_summary() -> None:
    """Files of others: unnamed nodes, unknown shapes."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=None)
    w: Any = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 2]))
    product = ir.node("MatMul", [x, w])
    relu = ir.node("Relu", [product.outputs[0]])
    graph = ir.Graph(
        [x], [relu.outputs[0]], nodes=[product, relu], initializers=[], opset_imports={"": 21}, name=None
    )
    summary = nn.summarize(ir.Model(graph, ir_version=10))
    assert len(summary.layers) == 3
    assert summary.macs is None
    assert "?" in str(summary)

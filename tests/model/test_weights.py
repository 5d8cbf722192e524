from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import ConfigError
from onward.graph import canonical_model
from onward.model import from_bytes, trainable_initializers


def load(text: str) -> ir.Model:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21]>' + text)
    return from_bytes(proto.SerializeToString())


NET = """
g (float[1, 2, 4, 4] x, int64[3] ids) => (float[p, q, r, s] y, float[t, u] e)
<
    float[2, 2, 1, 1] conv_w = {1, 2, 3, 4},
    float[2] conv_b = {1, 2},
    float[2] bn_scale = {1, 1}, float[2] bn_bias = {0, 0},
    float[2] bn_mean = {0, 0}, float[2] bn_var = {1, 1},
    float lo = {0.0}, float hi = {6.0},
    float[4] scales = {1.0, 1.0, 2.0, 2.0}, float half = {0.5},
    float[2, 1, 1] gate = {1, 2},
    float[4, 2] table = {1, 2, 3, 4, 5, 6, 7, 8}, float[2, 2] flat = {1, 2, 3, 4},
    int64[1] shape = {4}, float[2] unused = {1, 2},
    float pad = {0.0}, int64[8] pads = {0, 0, 0, 0, 0, 0, 0, 0}
>
{
    a = Conv(x, conv_w, conv_b)
    b = BatchNormalization(a, bn_scale, bn_bias, bn_mean, bn_var)
    c = Clip(b, lo, hi)
    d = Resize(c, , scales)
    f = Mul(d, half)
    g = Mul(f, gate)
    y = Pad(g, pads, pad)
    rows = Gather(table, ids)
    turned = Transpose(flat)
    e = MatMul(rows, turned)
}
"""


def test_weights_are_found_by_use() -> None:
    assert trainable_initializers(load(NET)) == (
        "conv_w",
        "conv_b",
        "bn_scale",
        "bn_bias",
        "gate",
        "table",
        "flat",
    )


def test_angles_of_positions_are_no_weights() -> None:
    rotary = """
    g (float[1, 3] x, float[4, 1] at) => (float[4, 2] y, float[1, 2] z)
    <float[1, 2] inv_freq = {1, 0.1}, float[3, 2] siren = {1, 2, 3, 4, 5, 6}>
    {
        angles = MatMul(at, inv_freq)
        both = Identity(angles)
        c = Cos(both)
        s = Sin(angles)
        y = Mul(c, s)
        waves = MatMul(x, siren)
        z = Sin(waves)
    }
    """
    assert trainable_initializers(load(rotary)) == ("siren",)


def test_operators_outside_the_standard_say_what_is_a_weight() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[1, 2, 16] x, int64[1, 2] at, int64[1, 2] ids) => (float[1, 2, 3] y)
    {
        taken = com.microsoft.GatherBlockQuantized <bits = 8, block_size = 16> (table, ids, scales)
        turned = com.microsoft.RotaryEmbedding <num_heads = 2> (x, at, cos, sin)
        n = com.microsoft.SkipSimplifiedLayerNormalization (taken, turned, gain)
        y = com.microsoft.FusedMatMul (n, w)
    }
    """
    proto = onnx.parser.parse_model(text)
    shapes = {"cos": (8, 4), "sin": (8, 4), "gain": (16,), "w": (16, 3), "scales": (6, 1)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    for name, array in {**arrays, "table": np.ones((6, 16), np.uint8)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = from_bytes(proto.SerializeToString())
    assert trainable_initializers(model) == ("gain", "w")
    assert trainable_initializers(canonical_model(model)) == ("gain", "w")
    assert trainable_initializers(canonical_model(model), ["cos"]) == ("cos",)


def test_patterns_choose() -> None:
    model = load(NET)
    assert trainable_initializers(model, ["bn_*", "half"]) == (
        "bn_scale",
        "bn_bias",
        "bn_mean",
        "bn_var",
        "half",
    )
    assert trainable_initializers(model, []) == ()


@pytest.mark.parametrize("pattern", ["conv_weight", "shape", "pads", ""])
def test_a_pattern_without_a_match(pattern: str) -> None:
    with pytest.raises(ConfigError, match="matches no float initialiser"):
        trainable_initializers(load(NET), ["conv_*", pattern])


def test_names_with_brackets_match_themselves() -> None:
    model = load("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model.graph.initializers["w"].name = "w[0]"
    assert trainable_initializers(model, ["w[0]"]) == ("w[0]",)


def test_weights_of_branches_count() -> None:
    model = load(
        """g (float[2, 2] x, bool c) => (float[2, 2] y) {
            y = If (c) <
                then_branch = t () => (float[2, 2] u) <float[2, 2] w = {1, 2, 3, 4}> { u = MatMul(x, w) },
                        else_branch = e () => (float[2, 2] v) { v = Relu(x) }>
        }"""
    )
    assert trainable_initializers(model) == ("w",)


def test_tables_read_by_position_are_weights() -> None:
    """As torch's second exporter writes `table[index]` of a Swin transformer."""
    model = load("""
        g (float[3, 2] x, int64[3, 1] at, int64[3, 2] elements) => (float[3, 2] y, float[3, 2] z)
        < float[2, 4] turned = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] table = {1, 2, 3, 4, 5, 6, 7, 8},
          float[4] curve = {1, 2, 3, 4} >
        {
            rows = Transpose(turned)
            picked = GatherND(rows, at)
            y = Add(x, picked)
            cells = GatherElements(table, elements)
            points = GatherND(curve, at)
            z = Sub(cells, x)
        }
    """)
    assert trainable_initializers(model) == ("turned", "table")


@pytest.mark.parametrize(
    ("elements", "weight"),
    [
        *[("0, -100", False), ("0, -1e30", False)],
        *[("-100, -100", True), ("-100, -200", True), ("0, -1", True), ("0.5, -100", True)],
    ],
)
def test_masks_of_scores_are_no_weights(elements: str, weight: bool) -> None:
    model = load(f"g (float[3, 2] x) => (float[3, 2] y) < float[2] m = {{{elements}}} > {{ y = Add(x, m) }}")
    assert trainable_initializers(model) == (("m",) if weight else ())

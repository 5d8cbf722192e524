from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onward.errors import UnsupportedError
from onward.graph.op import versions_of
from onward.model import from_bytes, to_bytes, upgrade

Run = Callable[..., list[np.ndarray]]
F, I64 = TensorProto.FLOAT, TensorProto.INT64


def single(
    operator: str,
    opset: int,
    inputs: dict[str, tuple[int, list[int]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, np.ndarray] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    constants = constants or {}
    graph = helper.make_graph(
        [helper.make_node(operator, [*inputs, *constants], list(outputs), name="node", **attributes)],
        "g",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def unary(
    operator: str, opset: int, shape: list[int], result: list[int], **attributes: Any
) -> onnx.ModelProto:
    return single(operator, opset, {"x": (F, shape)}, {"y": (F, result)}, **attributes)


def scaled(
    operator: str, opset: int, size: list[int], scales: list[float], result: list[int], mode: str
) -> onnx.ModelProto:
    return single(operator, opset, {"x": (F, size)}, {"y": (F, result)}, {"s": np.float32(scales)}, mode=mode)


ONES = np.ones(2, np.float32)
CASES: dict[str, onnx.ModelProto] = {
    "softmax over the inner dimensions": unary("Softmax", 11, [2, 3, 4], [2, 3, 4], axis=1),
    "softmax by default": unary("Softmax", 11, [2, 3, 4], [2, 3, 4]),
    "log-softmax": unary("LogSoftmax", 9, [2, 3, 4], [2, 3, 4], axis=1),
    "hardmax over the inner dimensions": unary("Hardmax", 11, [2, 3, 4], [2, 3, 4]),
    "hardmax of the last": unary("Hardmax", 11, [2, 3, 4], [2, 3, 4], axis=2),
    "clip": unary("Clip", 7, [2, 3], [2, 3], min=-0.5, max=0.5),
    "clip from below": unary("Clip", 7, [2, 3], [2, 3], min=-0.5),
    "pad": unary("Pad", 10, [2, 3], [2, 5], pads=[0, 1, 0, 1], value=2.0),
    "slice": unary("Slice", 9, [4, 3], [2, 3], axes=[0], starts=[1], ends=[3]),
    "squeeze": unary("Squeeze", 11, [1, 3], [3], axes=[0]),
    "squeeze all": unary("Squeeze", 11, [1, 3, 1], [3]),
    "unsqueeze": unary("Unsqueeze", 11, [3], [1, 3], axes=[0]),
    "sum": unary("ReduceSum", 11, [2, 3], [2], axes=[1], keepdims=0),
    "mean": unary("ReduceMean", 11, [2, 3], [2, 1], axes=[-1]),
    "max": unary("ReduceMax", 17, [2, 3], [2], axes=[1], keepdims=0),
    "dropout": unary("Dropout", 10, [5], [5], ratio=0.3),
    "average pool": unary("AveragePool", 7, [1, 1, 4], [1, 1, 3], kernel_shape=[2]),
    "flatten": unary("Flatten", 7, [2, 3, 4], [2, 12]),
    "fourier": unary("DFT", 17, [1, 4, 3, 1], [1, 4, 3, 2]),
    "upsample by attribute": unary("Upsample", 7, [1, 1, 2, 2], [1, 1, 4, 4], scales=[1.0, 1.0, 2.0, 2.0]),
    "upsample nearest": scaled("Upsample", 9, [1, 1, 2, 2], [1, 1, 2.5, 2], [1, 1, 5, 4], "nearest"),
    "upsample linear": scaled("Upsample", 9, [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 4, 4], "linear"),
    "resize linear": scaled("Resize", 10, [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 4, 4], "linear"),
    "resize nearest": scaled("Resize", 10, [1, 1, 3, 3], [1, 1, 1.7, 1.7], [1, 1, 5, 5], "nearest"),
    "reduce nearest": scaled("Resize", 10, [1, 1, 7, 7], [1, 1, 0.6, 0.5], [1, 1, 4, 3], "nearest"),
    "reduce and enlarge nearest": scaled(
        "Resize", 10, [1, 1, 7, 4], [1, 1, 0.6, 1.7], [1, 1, 4, 6], "nearest"
    ),
    "split": single("Split", 11, {"x": (F, [4])}, {"y": (F, [1]), "z": (F, [3])}, split=[1, 3]),
    "split evenly": single("Split", 11, {"x": (F, [4])}, {"y": (F, [2]), "z": (F, [2])}),
    "top k": single("TopK", 9, {"x": (F, [5])}, {"y": (F, [2]), "i": (I64, [2])}, axis=0, k=2),
    "normalisation": single(
        "BatchNormalization",
        7,
        {"x": (F, [1, 2, 3])},
        {"y": (F, [1, 2, 3])},
        {"s": ONES * 2, "b": ONES, "m": ONES * 3, "v": ONES * 4},
    ),
    "grid": single(
        "GridSample",
        16,
        {"x": (F, [1, 1, 3, 3]), "g": (F, [1, 2, 2, 2])},
        {"y": (F, [1, 1, 2, 2])},
        mode="bilinear",
    ),
    "regions": single(
        "RoiAlign",
        10,
        {"x": (F, [1, 1, 8, 8])},
        {"y": (F, [1, 1, 2, 2])},
        {"r": np.float32([[1, 1, 6, 6]]), "i": np.int64([0])},
        output_height=2,
        output_width=2,
    ),
    "scatter": single("Scatter", 9, {"x": (F, [4]), "i": (I64, [1]), "u": (F, [1])}, {"y": (F, [4])}),
    "lstm": single(
        "LSTM",
        7,
        {"x": (F, [2, 1, 3])},
        {"y": (F, [2, 1, 1, 4])},
        {"w": np.full((1, 16, 3), 0.1, np.float32), "r": np.full((1, 16, 4), 0.2, np.float32)},
        hidden_size=4,
    ),
    "loss": single("SoftmaxCrossEntropyLoss", 12, {"x": (F, [2, 3]), "l": (I64, [2])}, {"y": (F, [])}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_after_conversion(case: str, run_ort: Run) -> None:
    before = CASES[case]
    after = to_bytes(upgrade(from_bytes(before.SerializeToString())))
    proto = onnx.load_from_string(after)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == 10
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 21)]
    for old, new in zip(run_ort(before.SerializeToString()), run_ort(after), strict=True):
        np.testing.assert_array_equal(old, new)


def branches() -> onnx.ModelProto:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node("Squeeze", ["x"], [f"{name}1"], axes=[0], name=f"{name}_squeeze"),
                helper.make_node("Softmax", [f"{name}1"], [f"{name}2"], axis=0, name=f"{name}_softmax"),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}2", F, [2, 3])],
        )

    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", F, [1, 2, 3]),
        ],
        [helper.make_tensor_value_info("y", F, [2, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def test_branches_are_converted(run_ort: Run) -> None:
    before = branches().SerializeToString()
    model = upgrade(from_bytes(before))
    assert {node.op_type for node in model.graph.all_nodes()} >= {"If", "Squeeze", "Softmax"}
    np.testing.assert_array_equal(run_ort(before)[0], run_ort(to_bytes(model))[0])


def test_the_original_stays_and_tensors_are_shared() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13, "unused" : 1], producer_name: "p">
        g (float[n, 40] x) => (float[n, 50] y) { [mm] m = MatMul(x, w) [rm] y = Add(m, b) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w", (40, 50)), ("b", (50,))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    proto.metadata_props.add(key="a", value="b")
    proto.graph.node[0].metadata_props.add(key="c", value="d")
    model = from_bytes(proto.SerializeToString())
    before = to_bytes(model)
    result = upgrade(model)
    assert to_bytes(model) == before
    assert (model.ir_version, result.ir_version) == (8, 10)
    assert result.opset_imports == {"": 21}
    assert result.producer_name == "p"
    assert result.metadata_props == {"a": "b"}
    assert [(node.name, dict(node.metadata_props)) for node in result.graph] == [
        ("mm", {"c": "d"}),
        ("rm", {}),
    ]
    old, new = model.graph.initializers["w"].const_value, result.graph.initializers["w"].const_value
    assert old is not None
    assert new is not None
    assert np.shares_memory(old.numpy(), new.numpy())
    assert set(result.graph.initializers) == {"w", "b"}
    assert [value.name for value in result.graph.inputs] == ["x"]


def test_a_model_at_the_target_only_gets_the_ir_version(mlp: onnx.ModelProto) -> None:
    mlp.ir_version = 11
    model = from_bytes(mlp.SerializeToString())
    result = upgrade(model)
    assert result.ir_version == 10
    assert [node.op_type for node in result.graph] == ["Gemm", "Relu", "MatMul"]
    assert model.ir_version == 11


def test_what_the_converter_cannot_do_names_the_node() -> None:
    text = """<ir_version: 7, opset_import: ["" : 13]>
        g (float[2, 3] x, int64[2] l, float[4, 2] u, float[2] v) => (float z, float[4, 2] y) {
            [loss] z = SoftmaxCrossEntropyLoss(x, l)
            [node] y, m, w, saved_m, saved_w = BatchNormalization(u, v, v, v, v)
        }"""
    with pytest.raises(UnsupportedError, match=r"node 'node' \(BatchNormalization, opset 13"):
        upgrade(from_bytes(onnx.parser.parse_model(text).SerializeToString()))


def test_every_operator_of_an_old_opset_is_known() -> None:
    """The converter keeps what Resize and others meant then only in part, so it must not be asked."""
    schemas = onnx.defs.get_all_schemas_with_history()
    old = {s.name for s in schemas if s.domain == "" and s.since_version < 12}
    assert [name for name in sorted(old) if not versions_of("", name)] == []


def newer(body: str, opset: int) -> bytes:
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    text = f"{head} g (float[1, 1, 8] x) => (float[a, b, c] y) {{ {body} }}"
    return onnx.parser.parse_model(text).SerializeToString()


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "m = Softmax(x) y = MaxPool<kernel_shape = [2]>(m)",
        "i = Cast<to = 7>(x) y = Cast<to = 1>(i)",
    ],
)
def test_newer_opsets_go_down_where_nothing_changed(body: str, run_ort: Run) -> None:
    before = newer(body, 23)
    result = upgrade(from_bytes(before))
    assert result.opset_imports == {"": 21}
    np.testing.assert_array_equal(run_ort(before)[0], run_ort(to_bytes(result))[0])


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        ("[n] y = Swish(x)", 24, r"node 'n' \(Swish\): opset 21 does not have it"),
        ("[n] y = MaxPool<kernel_shape = [2], ceil_mode = 1>(x)", 22, r"node 'n' \(MaxPool\): ceil_mode"),
        (
            'i = Cast<to = 7>(x) [n] y = Cast<to = 1, round_mode = "down">(i)',
            24,
            r"\(Cast\): attribute 'round_mode'",
        ),
    ],
)
def test_newer_meanings_are_refused(body: str, opset: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        upgrade(from_bytes(newer(body, opset)))


def test_every_newer_node_is_listed() -> None:
    with pytest.raises(UnsupportedError) as caught:
        upgrade(from_bytes(newer("[a] m = Swish(x) [b] y = Swish(m)", 24)))
    assert "node 'a'" in str(caught.value)
    assert "node 'b'" in str(caught.value)

"""Old versions of operators, alone in a model of their opset: the right values, in both engines, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, canonical_graph
from onward.model import from_bytes, to_bytes, upgrade

_RNG = np.random.default_rng(7)


def _f(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


X = _f(2, 3, 4)
IMAGE = _f(1, 2, 4, 4)
ROWS, COLUMNS = _f(2, 3), _f(3, 4)
SIDE = _f(3)
POSITIVE = np.abs(_f(2, 3)) + np.float32(0.5)
TRUTH = np.array([[True, False, True], [False, False, True]])
_SUMS = IMAGE.reshape(1, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class Old:
    """A node of an old opset, and what it gives."""

    op_type: str
    opset: int
    inputs: Sequence[Array]
    expected: Array | tuple[Array, ...]
    attrs: dict[str, Any]
    numpy: bool = False
    """Whether the current version has no compiled kernel for such operands."""

    @property
    def id(self) -> str:
        return f"{self.op_type}-{self.opset}-{'-'.join(map(str, self.attrs))}"


def old(op_type: str, opset: int, inputs: Sequence[Any], want: Any, numpy: bool = False, **attrs: Any) -> Old:
    return Old(op_type, opset, [np.asarray(x) for x in inputs], want, attrs, numpy)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _normalized(x: Array, scale: Array, b: Array, mean: Array, var: Array) -> Array:
    return np.asarray((x - mean) / np.sqrt(var + 1e-5) * scale + b)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _rnn(x: Array, w: Array, r: Array) -> Array:
    h, ys = np.zeros((x.shape[1], r.shape[-1]), np.float32), []
    for t in range(len(x)):
        h = np.tanh(x[t] @ w[0].T + h @ r[0].T)
        ys.append(h)
    return np.stack(ys)[:, None]


def _gru(x: Array, w: Array, r: Array) -> Array:
    h, ys, n = np.zeros((x.shape[1], r.shape[-1]), np.float32), [], r.shape[-1]
    for t in range(len(x)):
        z, s = (_sigmoid(x[t] @ w[0, i * n : i * n + n].T + h @ r[0, i * n : i * n + n].T) for i in (0, 1))
        h = (1 - z) * np.tanh(x[t] @ w[0, 2 * n :].T + (s * h) @ r[0, 2 * n :].T) + z * h
        ys.append(h)
    return np.stack(ys)[:, None]


def _lstm(x: Array, w: Array, r: Array) -> Array:
    n = r.shape[-1]
    h = c = np.zeros((x.shape[1], n), np.float32)
    ys = []
    for t in range(len(x)):
        i, o, f, g = np.split(x[t] @ w[0].T + h @ r[0].T, 4, -1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys)[:, None]


TIME = _f(3, 2, 3)
W4, R4 = _f(1, 16, 3), _f(1, 16, 4)
GATED = _gru(TIME, W4[:, :12], R4[:, :12])
STATS = [POSITIVE[0], _f(3), _f(3), POSITIVE[1]]
WHOLE = [np.abs(_f(3, 4)) + np.float32(0.5) for _ in range(4)]
CHANNEL = [s[:, None] for s in STATS]
_UP = np.stack([ROWS, (ROWS + ROWS[:, [1, 2, 2]]) / 2], -1).reshape(2, 6)
_AXIS = {"axis": 1, "broadcast": 1}
_BINARY: list[tuple[str, Callable[..., Array]]] = [
    ("Add", np.add),
    ("Sub", np.subtract),
    ("Mul", np.multiply),
    ("Div", np.divide),
]

CASES = [
    *(old(name, opset, [X, SIDE], f(X, SIDE[:, None]), **_AXIS) for name, f in _BINARY for opset in (1, 6)),
    *(old(name, 6, [X, X[0, 0]], f(X, X[0, 0]), broadcast=1) for name, f in _BINARY),
    *(old(name, 6, [X, X + 1], f(X, X + 1)) for name, f in _BINARY),
    old("Add", 6, [X, ROWS], X + ROWS[:, :, None], axis=0, broadcast=1),
    old("Pow", 1, [np.abs(X), np.float32([2, 1, 3])], np.abs(X) ** np.float32([[2], [1], [3]]), **_AXIS),
    old("Less", 1, [X, SIDE], SIDE[:, None] > X, **_AXIS),
    old("Greater", 1, [X, SIDE], SIDE[:, None] < X, **_AXIS),
    old("And", 1, [TRUTH, TRUTH[:, 0]], TRUTH & TRUTH[:, :1], axis=0, broadcast=1),
    old("Or", 1, [TRUTH, TRUTH[:, 0]], TRUTH | TRUTH[:, :1], axis=0, broadcast=1),
    old("Xor", 1, [TRUTH, TRUTH[:, 0]], TRUTH ^ TRUTH[:, :1], axis=0, broadcast=1),
    old("Equal", 1, [TRUTH, TRUTH[:, 0]], TRUTH[:, :1] == TRUTH, axis=0, broadcast=1),
    *(old("PRelu", v, [X, SIDE], np.where(X < 0, SIDE[:, None] * X, X)) for v in (1, 6)),
    old("PRelu", 6, [X, SIDE[:1]], np.where(X < 0, SIDE[0] * X, X)),
    *(old("Gemm", v, [ROWS, COLUMNS, COLUMNS[0]], ROWS @ COLUMNS + COLUMNS[0], broadcast=1) for v in (1, 6)),
    *(
        old("BatchNormalization", v, [X, *STATS], _normalized(X, *CHANNEL), **extra)
        for v, extra in (
            (1, {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}),
            (6, {"is_test": 1}),
            (7, {}),
            (9, {}),
        )
    ),
    old("BatchNormalization", 7, [X, *WHOLE], _normalized(X, *WHOLE), spatial=0),
    old("BatchNormalization", 6, [X, *WHOLE], _normalized(X, *WHOLE), spatial=0, is_test=1),
    *(old("Dropout", v, [X], X, is_test=1) for v in (1, 6)),
    *(old("Dropout", v, [X], X, ratio=0.3) for v in (7, 10)),
    *(
        old(name, v, [X], f(X.reshape(2, 12)).reshape(X.shape))
        for name, f in (("Softmax", _softmax), ("LogSoftmax", lambda x: np.log(_softmax(x))))
        for v in (1, 11)
    ),
    old("Softmax", 1, [X], _softmax(X), axis=2),
    old("Hardmax", 11, [ROWS], (ROWS.max(1, keepdims=True) == ROWS).astype(np.float32)),
    *(
        old("AveragePool", v, [IMAGE], _SUMS.mean((3, 5)), kernel_shape=[2, 2], strides=[2, 2])
        for v in (1, 7, 10, 11, 19)
    ),
    *(
        old("MaxPool", v, [IMAGE], _SUMS.max((3, 5)), kernel_shape=[2, 2], strides=[2, 2])
        for v in (1, 8, 10, 11, 12)
    ),
    *(
        old("LpPool", v, [IMAGE], (_SUMS**2).sum((3, 5)) ** 0.5, kernel_shape=[2, 2], strides=[2, 2])
        for v in (1, 2, 11)
    ),
    *(old("GlobalLpPool", v, [IMAGE], (IMAGE**2).sum((2, 3), keepdims=True) ** 0.5, True) for v in (1, 2)),
    old(
        "Pad",
        1,
        [ROWS],
        np.pad(ROWS, ((0, 1), (2, 0)), constant_values=1.5),
        paddings=[0, 2, 1, 0],
        value=1.5,
    ),
    old("Pad", 2, [ROWS], np.pad(ROWS, ((0, 1), (2, 0))), pads=[0, 2, 1, 0]),
    old("Pad", 2, [ROWS], np.pad(ROWS, ((0, 0), (1, 1)), "reflect"), pads=[0, 1, 0, 1], mode="reflect"),
    old("Slice", 1, [X], X[:, 1:, :-1], axes=[1, 2], starts=[1, 0], ends=[2**63 - 1, -1]),
    old("Slice", 1, [X], X[1:2], starts=[1], ends=[2]),
    *(old("Clip", v, [X], X.clip(-0.5, 0.25), min=-0.5, max=0.25) for v in (1, 6)),
    old("Clip", 6, [np.float32([np.inf, 2, -np.inf])], np.float32([np.finfo("f").max, 2, np.finfo("f").min])),
    old("Reshape", 1, [X], X.reshape(2, 12), shape=[0, -1]),
    old("Squeeze", 1, [X[:1]], X[0], axes=[0]),
    old("Squeeze", 11, [X[:1]], X[0]),
    old("Unsqueeze", 1, [X], X[:, None], axes=[1]),
    old("Unsqueeze", 11, [X], X[..., None], axes=[-1]),
    old("Split", 1, [ROWS], (ROWS[:, :1], ROWS[:, 1:]), axis=1, split=[1, 2]),
    old("Split", 2, [X], (X[..., :2], X[..., 2:]), axis=2),
    old("Split", 13, [X], (X[..., :2], X[..., 2:]), axis=2),
    old("Concat", 1, [ROWS, ROWS], np.concatenate([ROWS, ROWS], 1)),
    old("Tile", 1, [ROWS, np.float32(2), np.float32(1)], np.tile(ROWS, (1, 2))),
    old("Cast", 1, [ROWS], ROWS.astype(np.float64), to="DOUBLE"),
    old("Cast", 6, [TRUTH], TRUTH.astype(np.float32), to=1),
    old("Selu", 1, [X], np.where(X > 0, 1.0507 * X, 1.0507 * 1.6732 * np.expm1(X))),
    old("TopK", 1, [ROWS], (np.sort(ROWS)[:, ::-1][:, :2], np.argsort(-ROWS)[:, :2]), k=2),
    *(
        old(f"Reduce{name}", v, [X], f(X), axes=[1], keepdims=0)
        for name, f in (
            ("Sum", lambda x: x.sum(1)),
            ("Mean", lambda x: x.mean(1)),
            ("Max", lambda x: x.max(1)),
            ("Min", lambda x: x.min(1)),
            ("L1", lambda x: np.abs(x).sum(1)),
            ("L2", lambda x: np.sqrt((x * x).sum(1))),
            ("SumSquare", lambda x: (x * x).sum(1)),
        )
        for v in (1, 11)
    ),
    old("ReduceProd", 13, [X], X.prod(1, keepdims=True), axes=[1]),
    old("ReduceLogSumExp", 1, [X], np.log(np.exp(X).sum(-1, keepdims=True)), axes=[-1]),
    old("ReduceLogSum", 13, [POSITIVE], np.log(POSITIVE.sum(keepdims=True))),
    old("ArgMax", 1, [ROWS], ROWS.argmax(1), axis=1, keepdims=0),
    old(
        "DepthToSpace",
        1,
        [_SUMS.reshape(1, 8, 2, 2)],
        _SUMS.reshape(1, 2, 2, 2, 2, 2).transpose(0, 3, 4, 1, 5, 2).reshape(1, 2, 4, 4),
        blocksize=2,
    ),
    old(
        "Scatter",
        9,
        [ROWS, np.int64([[1, 0, 0]]), SIDE[None]],
        np.where([[False, True, True], [True, False, False]], SIDE, ROWS),
    ),
    old(
        "RNN",
        1,
        [TIME, W4[:, :4], R4[:, :4]],
        _rnn(TIME, W4[:, :4], R4[:, :4]),
        hidden_size=4,
        output_sequence=1,
    ),
    *(
        old(
            "GRU",
            v,
            [TIME, W4[:, :12], R4[:, :12]],
            (GATED, GATED[-1]),
            hidden_size=4,
            output_sequence=1,
        )
        for v in (1, 3)
    ),
    *(
        old("Upsample", v, [IMAGE], IMAGE.repeat(2, 2).repeat(3, 3), **extra)
        for v, extra in (
            (1, {"height_scale": 2.0, "width_scale": 3.0}),
            (7, {"scales": [1.0, 1.0, 2.0, 3.0]}),
        )
    ),
    old(
        "Upsample", 1, [ROWS[None, None]], _UP[None, None], mode="bilinear", height_scale=1.0, width_scale=2.0
    ),
    old("Upsample", 7, [ROWS], _UP, mode="linear", scales=[1.0, 2.0]),
    old("LSTM", 1, [TIME, W4, R4], _lstm(TIME, W4, R4), hidden_size=4, output_sequence=1),
    *(
        old(name, 1, [X], f(X), **extra)
        for name, f, extra in (
            ("Relu", lambda x: np.maximum(x, 0), {"consumed_inputs": [0]}),
            ("Sigmoid", _sigmoid, {"consumed_inputs": [0]}),
            ("Tanh", np.tanh, {}),
            ("Abs", np.abs, {"consumed_inputs": [0]}),
            ("Exp", np.exp, {}),
            ("LeakyRelu", lambda x: np.where(x < 0, 0.1 * x, x), {"alpha": 0.1}),
            ("Elu", lambda x: np.where(x < 0, np.expm1(x), x), {}),
        )
    ),
]


def _is_given(x: Array) -> bool:
    """Whether an operand is given at each run; positions and scalars are in the model."""
    return x.dtype != np.int64 and x.ndim > 0


def model_of(case: Old) -> bytes:
    wanted = case.expected if isinstance(case.expected, tuple) else (case.expected,)
    names = [f"i{i}" for i in range(len(case.inputs))]
    given = [(n, x) for n, x in zip(names, case.inputs, strict=True) if _is_given(x)]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                case.op_type, names, [f"o{i}" for i in range(len(wanted))], name="old", **case.attrs
            )
        ],
        "old",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in given
        ],
        [onnx.helper.make_tensor_value_info(f"o{i}", _type(case, x), x.shape) for i, x in enumerate(wanted)],
        [
            onnx.numpy_helper.from_array(x, n)
            for n, x in zip(names, case.inputs, strict=True)
            if not _is_given(x)
        ],
    )
    imports = [onnx.helper.make_opsetid("", case.opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=4).SerializeToString()


def _type(case: Old, x: Array) -> int:
    wide = x.dtype == np.float64 and case.op_type != "Cast"
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if wide else x.dtype)


def _feed(case: Old) -> dict[str, Array]:
    return {f"i{i}": x for i, x in enumerate(case.inputs) if _is_given(x)}


def _check(got: dict[str, Array], case: Old) -> None:
    wanted = case.expected if isinstance(case.expected, tuple) else (case.expected,)
    for i, want in enumerate(wanted):
        assert got[f"o{i}"].shape == want.shape
        np.testing.assert_allclose(got[f"o{i}"], want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_both_engines(case: Old) -> None:
    model = from_bytes(model_of(case))
    _check(Interpreter(model.graph).run(_feed(case)), case)
    engine = CompiledEngine(model, threads=1)
    _check(engine.run(_feed(case)), case)
    plan = engine.plan({name: x.shape for name, x in _feed(case).items()})
    assert plan is not None
    assert case.numpy == any(row.kernel == "numpy" for row in plan.rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_names_and_types_stay_and_the_model_does_not_change(case: Old) -> None:
    model = from_bytes(model_of(case))
    before = to_bytes(model)
    graph = canonical_graph(model.graph)
    assert to_bytes(model) == before
    for new, old_ in zip(
        (*graph.inputs, *graph.outputs), (*model.graph.inputs, *model.graph.outputs), strict=True
    ):
        assert (new.name, new.type, new.shape) == (old_.name, old_.type, old_.shape)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_upgraded_models_are_valid_and_the_same(case: Old) -> None:
    upgraded = upgrade(from_bytes(model_of(case)), 21)
    _check(Interpreter(from_bytes(to_bytes(upgraded)).graph).run(_feed(case)), case)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (old("BatchNormalization", 6, [X, *STATS], X), "operator BatchNormalization, opset 6: .*is_test=1"),
    ],
)
def test_training_forms_are_refused(case: Old, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Interpreter(from_bytes(model_of(case)).graph).run(_feed(case))


def test_ranks_that_do_not_fit_are_refused() -> None:
    graph = from_bytes(model_of(old("Add", 6, [X, SIDE], X, axis=3, broadcast=1))).graph
    with pytest.raises(ShapeError, match="node 'old', operator Add, opset 6: B of rank 1 does not fit"):
        Interpreter(graph)

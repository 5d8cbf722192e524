"""Models that nobody wrote: files with changed bytes, changed structure, and random graphs.

python -m benchmarks.fuzz_models [--seed N] [--count N] [--batch N] [--kinds KIND,...] [--keep DIR]
                                 [--nnsmith DIR]

bytes       a sound file in which some bytes were changed, cut off or doubled
structure   a sound file with other attributes, shapes, operands, types, operators, opsets
graphs      a random graph of our operators; forward against onnxruntime in both engines, and its gradient
            against central differences along a random direction, in float64
nnsmith     a graph that NNSmith made (`benchmarks/nnsmith_graphs.py` writes them), in DIR; forward against
            onnxruntime and torch's results beside it, and its gradient like that of our own graphs

adjoint     a random graph's gradient in float32 against the reverse graph that onnx-ad writes, run by
            onnxruntime; needs `pip install onnx-ad`, and is not among the kinds that run by themselves

Every batch runs in a process of its own with bounded memory and time. A file passes where it runs, or ends
in an error of ours; where onnxruntime runs it too, the results must agree. What fails is printed, with the
number that makes it again (`--seed S --count 1` with S the number), and the program ends with code 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ENGINES: tuple[Literal["interpreter", "compiled"], ...] = ("interpreter", "compiled")
KINDS = ("bytes", "structure", "graphs")
NNSMITH = "nnsmith"
ADJOINT = "adjoint"
MEMORY = 8 << 30
SECONDS = 20
"""Of a file, those of the compiler included; more counts as a hang."""

UNARY = (
    "Abs",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "Elu",
    "Selu",
    "LeakyRelu",
    "HardSigmoid",
    "HardSwish",
    "Erf",
    "Sin",
    "Cos",
    "Atan",
    "Mish",
    "Gelu",
    "Identity",
    "Softmax",
    "LogSoftmax",
    "Exp",
    "Square",
    "Cube",
)
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Ratio")
REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp")


class Graph:
    """A random graph over float tensors of known shapes, each made of those before it."""

    def __init__(self, rng: np.random.Generator, dtype: int) -> None:
        self.rng = rng
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.values: list[tuple[str, tuple[int, ...]]] = []
        rank = int(rng.integers(1, 5))
        shape = tuple(int(d) for d in rng.integers(1, 6, rank))
        self.values.append(("x", shape))
        self.inputs = [helper.make_tensor_value_info("x", dtype, shape)]

    def emit(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.values.append((name, shape))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
        return self.constant(self.rng.normal(0, 0.7, shape).astype(dtype))

    def step(self) -> None:
        """One more operator on some value."""
        name, shape = self.values[int(self.rng.integers(len(self.values)))]
        steps: list[Callable[[str, tuple[int, ...]], None]] = [
            self.unary,
            self.unary,
            self.binary,
            self.layout,
        ]
        if shape:
            steps += [self.reduce, self.slice, self.matmul, self.join]
        if len(shape) in (3, 4):
            steps += [self.window, self.window]
        steps[int(self.rng.integers(len(steps)))](name, shape)

    def unary(self, name: str, shape: tuple[int, ...]) -> None:
        op_type = str(self.rng.choice(UNARY))
        if op_type in ("Square", "Cube"):
            dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
            self.emit("Pow", [name, self.constant(np.array(2 if op_type == "Square" else 3, dtype))], shape)
        elif op_type in ("Softmax", "LogSoftmax"):
            if shape:
                self.emit(op_type, [name], shape, axis=int(self.rng.integers(-len(shape), len(shape))))
        elif op_type == "Exp":
            self.emit("Exp", [self.emit("Tanh", [name], shape)], shape)
        else:
            self.emit(op_type, [name], shape)

    def binary(self, name: str, shape: tuple[int, ...]) -> None:
        partners = [(n, s) for n, s in self.values if _broadcasts(shape, s)]
        other, found = partners[int(self.rng.integers(len(partners)))]
        if self.rng.random() < 0.5:
            found = tuple(d if self.rng.random() < 0.6 else 1 for d in shape)[int(self.rng.integers(0, 2)) :]
            other = self.weights(*found)
        result = np.broadcast_shapes(shape, found)
        op_type = str(self.rng.choice(BINARY))
        if op_type == "Ratio":  # by what is at least 1
            dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
            square = self.emit("Mul", [other, other], found)
            bottom = self.emit("Add", [square, self.constant(np.array(1, dtype))], found)
            self.emit("Div", [name, bottom], result)
        else:
            self.emit(op_type, [name, other], result)

    def reduce(self, name: str, shape: tuple[int, ...]) -> None:
        op_type, keep = str(self.rng.choice(REDUCE)), int(self.rng.integers(2))
        axes = sorted({int(a) for a in self.rng.integers(0, len(shape), int(self.rng.integers(1, 3)))})
        result = tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)
        self.emit(op_type, [name, self.constant(np.array(axes, np.int64))], result, keepdims=keep)

    def layout(self, name: str, shape: tuple[int, ...]) -> None:
        kind = int(self.rng.integers(3))
        if kind == 0 and shape:
            perm = [int(i) for i in self.rng.permutation(len(shape))]
            self.emit("Transpose", [name], tuple(shape[i] for i in perm), perm=perm)
        elif kind == 1:
            cut = int(self.rng.integers(0, len(shape) + 1))
            flat = (math.prod(shape[:cut]), math.prod(shape[cut:]))
            self.emit("Flatten", [name], flat, axis=cut)
        else:
            axis = int(self.rng.integers(0, len(shape) + 1))
            result = (*shape[:axis], 1, *shape[axis:])
            if len(result) <= 5:
                self.emit("Unsqueeze", [name, self.constant(np.array([axis], np.int64))], result)

    def slice(self, name: str, shape: tuple[int, ...]) -> None:
        axis = int(self.rng.integers(len(shape)))
        start, end = sorted(int(i) for i in self.rng.integers(0, shape[axis] + 1, 2))
        step = int(self.rng.choice([1, 1, 2]))
        if start == end:
            start, end = 0, shape[axis]
        operands = [self.constant(np.array([n], np.int64)) for n in (start, end, axis, step)]
        extent = len(range(start, end, step))
        self.emit("Slice", [name, *operands], (*shape[:axis], extent, *shape[axis + 1 :]))

    def matmul(self, name: str, shape: tuple[int, ...]) -> None:
        width = int(self.rng.integers(1, 6))
        result = (*shape[:-1], width)
        self.emit("MatMul", [name, self.weights(shape[-1], width)], result)

    def join(self, name: str, shape: tuple[int, ...]) -> None:
        axis = int(self.rng.integers(len(shape)))
        same = [n for n, s in self.values if s == shape]
        other = same[int(self.rng.integers(len(same)))]
        result = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        if math.prod(result) <= 4096:
            self.emit("Concat", [name, other], result, axis=axis)

    def window(self, name: str, shape: tuple[int, ...]) -> None:
        spatial = shape[2:]
        kernel = [int(self.rng.integers(1, min(3, d) + 1)) for d in spatial]
        strides = [int(s) for s in self.rng.integers(1, 3, len(spatial))]
        pads = [int(self.rng.integers(0, k)) for k in kernel] * 2
        sizes = list(zip(spatial, pads, kernel, strides, strict=False))
        out = tuple((d + 2 * p - k) // s + 1 for d, p, k, s in sizes)
        shared: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
        kind = str(self.rng.choice(["Conv", "MaxPool", "AveragePool", "ConvTranspose"]))
        if kind == "Conv":
            channels = int(self.rng.integers(1, 5))
            self.emit(
                kind, [name, self.weights(channels, shape[1], *kernel)], (shape[0], channels, *out), **shared
            )
        elif kind == "ConvTranspose":
            channels = int(self.rng.integers(1, 5))
            out = tuple((d - 1) * s + k - 2 * p for d, p, k, s in sizes)
            if min(out) >= 1:
                weights = self.weights(shape[1], channels, *kernel)
                self.emit(kind, [name, weights], (shape[0], channels, *out), **shared)
        else:
            self.emit(kind, [name], (*shape[:2], *out), **shared)

    def model(self) -> onnx.ModelProto:
        """The graph with its last value as output."""
        name, shape = self.values[-1]
        output = helper.make_tensor_value_info(name, self.dtype, shape)
        graph = helper.make_graph(self.nodes, "fuzz", self.inputs, [output], self.tensors)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return math.prod(np.broadcast_shapes(a, b)) <= 4096
    except ValueError:
        return False


def random_graph(rng: np.random.Generator, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A sound model of 1 to 12 operators."""
    graph = Graph(rng, dtype)
    for _ in range(int(rng.integers(1, 9))):
        graph.step()
    if not graph.nodes:
        graph.emit("Tanh", ["x"], graph.values[0][1])
    return graph.model()


def changed_bytes(rng: np.random.Generator) -> bytes:
    """A sound file with weights, damaged."""
    model = random_graph(rng)
    while not any(t.data_type == TensorProto.FLOAT and len(t.raw_data) >= 8 for t in model.graph.initializer):
        model = random_graph(rng)
    data = bytearray(model.SerializeToString())
    tensors = [t for t in model.graph.initializer if len(t.raw_data) >= 8]
    weights = [t.raw_data for t in tensors if t.data_type == TensorProto.FLOAT or rng.random() < 0.1]
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(data)))
        if weights and rng.random() < 0.9:  # names are most of a small file, and without one it is refused
            inside = weights[int(rng.integers(len(weights)))]
            at = max(0, data.find(inside)) + int(rng.integers(len(inside)))
        match int(rng.integers(24)):
            case kind if kind < 10:
                data[at] = int(rng.integers(256))
            case kind if kind < 21:
                data[at] ^= 1 << int(rng.integers(8))
            case 21:  # no file of another length is left whole, and few are needed to see that
                del data[at : at + int(rng.integers(1, 9))]
            case 22:
                data[at:at] = data[at : at + int(rng.integers(1, 33))]
            case _:
                data[at : at + 1] = bytes([0xFF] * 9 + [1])[: int(rng.integers(1, 11))]
        if len(data) < 2:
            break
    return bytes(data)


NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    -2,
    7,
    255,
    2**28,
    -(2**28),
    2**31 - 1,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)


def changed_structure(rng: np.random.Generator) -> bytes:
    """A sound model with something else in its place."""
    model = random_graph(rng)
    for _ in range(int(rng.integers(1, 4))):
        node = model.graph.node[int(rng.integers(len(model.graph.node)))]
        number = int(rng.choice(np.array(NUMBERS, object)))
        match int(rng.integers(9)):
            case 0 if node.attribute:
                attribute = node.attribute[int(rng.integers(len(node.attribute)))]
                if attribute.ints:
                    attribute.ints[int(rng.integers(len(attribute.ints)))] = number
                else:
                    attribute.i = number
            case 1 if node.attribute:
                del node.attribute[int(rng.integers(len(node.attribute)))]
            case 2 if node.input:
                names = [v.name for v in model.graph.input] + [n.output[0] for n in model.graph.node] + [""]
                node.input[int(rng.integers(len(node.input)))] = str(rng.choice(names))
            case 3:
                node.op_type = str(
                    rng.choice([n.op_type for n in model.graph.node] + ["Loop", "Gather", "TopK"])
                )
            case 4:
                model.opset_import[0].version = int(rng.integers(-1, 30))
            case 5 if model.graph.initializer:
                tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
                with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):  # of another type
                    array = numpy_helper.to_array(tensor).copy()
                    array.reshape(-1)[:1] = number
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            case 6 if model.graph.initializer:
                tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
                tensor.data_type = int(rng.integers(0, 24))
            case 7:
                dims = model.graph.input[0].type.tensor_type.shape.dim
                if dims:
                    dims[int(rng.integers(len(dims)))].dim_value = number
            case _:
                model.graph.node.add().CopyFrom(node)
                model.graph.node[-1].output[0] = f"more{len(model.graph.node)}"
    return bytes(model.SerializeToString())


def judge(kind: str, number: int, keep: Path | None = None, nnsmith: Path | None = None) -> tuple[str, str]:
    """What became of a file: its class, and what is wrong with it, if anything is."""
    if kind == NNSMITH:
        assert nnsmith is not None, "the graphs of NNSmith have a folder"
        return _replay(nnsmith / f"{number}.onnx", number)
    if kind == ADJOINT:
        return _beside_onnx_ad(number)
    rng = np.random.default_rng([KINDS.index(kind), number])
    if kind == "graphs":
        data = random_graph(rng).SerializeToString()
    else:
        data = changed_bytes(rng) if kind == "bytes" else changed_structure(rng)
    if keep is not None:
        (keep / f"{kind}-{number}.onnx").write_bytes(data)
    result, wrong = _forward(data, rng, sound=kind == "graphs")
    if kind == "graphs" and not wrong:
        wrong = _backward(number)
    return result, wrong


def _replay(path: Path, number: int) -> tuple[str, str]:
    """A graph of NNSmith with its inputs and with what torch made of them."""
    data, rng = path.read_bytes(), np.random.default_rng([len(KINDS), number])
    with np.load(path.with_suffix(".npz")) as oracle:
        inputs = {name[3:]: oracle[name] for name in oracle.files if name.startswith("in.")}
        outputs = {name[4:]: oracle[name] for name in oracle.files if name.startswith("out.")}
    result, wrong = _forward(data, rng, sound=True, feeds=inputs, oracle=outputs)
    return result, wrong or slopes_differ(*_double(onnx.load_from_string(data), inputs), rng)


def _forward(
    data: bytes,
    rng: np.random.Generator,
    *,
    sound: bool,
    feeds: Mapping[str, np.ndarray] | None = None,
    oracle: Mapping[str, np.ndarray] | None = None,
) -> tuple[str, str]:
    from onward.engine import Session
    from onward.errors import OnwardError
    from onward.model import from_bytes

    try:
        model = from_bytes(data)
    except OnwardError as error:
        return "refused at reading", str(error) if sound else ""
    results: list[dict[str, Any] | str] = []
    for engine in ENGINES:
        try:
            with Session(model, engine=engine) as session:
                if feeds is None:
                    shapes = {
                        x.name: [d if isinstance(d, int) else 2 for d in x.shape or ()]
                        for x in session.inputs
                    }
                    feeds = {
                        x.name: rng.normal(size=shapes[x.name]).astype(x.dtype)
                        for x in session.inputs
                        if math.prod(map(int, shapes[x.name])) <= 1 << 20
                    }
                results.append(session.run(feeds))
        except OnwardError as error:
            results.append(f"{type(error).__name__}: {error}")
    slow, fast = results
    if isinstance(slow, str) or isinstance(fast, str):
        one_failed = isinstance(slow, str) != isinstance(fast, str)
        if one_failed and not sound and (needed := _needed(data)) is not None:
            result, wrong = _forward(needed, rng, sound=sound, feeds=feeds)
            return (result, wrong) if wrong else ("refused for a node that no output needs", "")
        return "refused at running", f"engines part: {slow} | {fast}"[:400] if one_failed or sound else ""
    wrong = _difference(slow, fast, "interpreter and compiled")
    expected = _by_onnxruntime(data, feeds or {})
    if expected is None and oracle is not None:
        # torch promotes types that the exported graph declares otherwise
        oracle = {name: array.astype(np.asarray(slow[name]).dtype) for name, array in oracle.items()}
        wrong = wrong or _difference(oracle, slow, "torch and interpreter")
    if expected is None:
        return "ran, onnxruntime does not", wrong
    if not wrong and (apart := _difference(expected, slow, "onnxruntime and interpreter")):
        if not (node := _departs(data, feeds or {})):
            return "ran and compared, apart by rounding or theirs", ""
        wrong = f"{apart}; {node}"
    return "ran and compared", wrong


def _needed(data: bytes) -> bytes | None:
    """The model without the nodes that no output depends on, which one engine does not look at; None where
    there are none.
    """
    model = onnx.load_from_string(data)
    wanted, kept = {v.name for v in model.graph.output}, []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    if len(kept) == len(model.graph.node):
        return None
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return bytes(model.SerializeToString())


def _by_onnxruntime(data: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    except Exception:  # noqa: BLE001, whatever it raises, it does not run the file
        return None


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any], who: str) -> str:
    for name, want in expected.items():
        if (why := _apart(np.asarray(want), np.asarray(found[name]))) is not None:
            return f"{who}, {name!r}: {why}"
    return ""


_NARROW = {np.dtype(np.float16): 4.0, np.dtype(ml_dtypes.bfloat16): 32.0}
"""How many times further than others results of a type may be apart."""


def _apart(want: np.ndarray, got: np.ndarray) -> str | None:
    """How two results differ, beyond what sums in another order explain."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{want.dtype}{list(want.shape)} and {got.dtype}{list(got.shape)}"
    if got.dtype.kind not in "fV":
        different = int(np.sum(got != want))
        return f"{different} of {got.size} elements differ" if different else None
    want64, got64 = want.astype(np.float64), got.astype(np.float64)
    wider = _NARROW.get(got.dtype, 1.0)
    scale = max(1.0, float(np.max(np.abs(want64[np.isfinite(want64)]), initial=0.0)))
    if np.allclose(got64, want64, rtol=2e-3 * wider, atol=2e-4 * wider * scale, equal_nan=True):
        return None
    away = np.abs(got64 - want64)
    worst = float(np.max(away, where=np.isfinite(away), initial=0.0))
    return f"{worst:.3g} apart, of {scale:.3g}" if worst else "NaN or infinity in other places"


def _departs(data: bytes, feeds: Mapping[str, np.ndarray]) -> str:
    """The first node that makes something else of the same operands than onnxruntime, unless that is what the
    standard's reference makes of them in float64; "" if there is none.

    Then results are apart by rounding that later operators made larger: a step as in Cast to integers or
    Floor, a comparison, a difference of large numbers; or onnxruntime is less exact.
    """
    from onward.engine import Session
    from onward.errors import OnwardError
    from onward.model import from_bytes

    model = onnx.load_from_string(data)
    inferred = onnx.shape_inference.infer_shapes(model)
    typed = {v.name: v for v in inferred.graph.value_info}
    have = {v.name for v in model.graph.output}
    model.graph.output.extend(
        typed[name] for n in model.graph.node for name in n.output if name in typed and name not in have
    )
    shown = model.SerializeToString()
    theirs = _by_onnxruntime(shown, feeds)
    if theirs is None:
        return "onnxruntime shows no intermediate results"
    try:
        with Session(from_bytes(shown), engine="interpreter") as session:
            ours = session.run(feeds)
    except OnwardError as error:
        return f"the intermediate results are refused: {error}"
    for node in model.graph.node:
        given = [name for name in node.input if name in theirs]
        if not all(np.array_equal(theirs[name], ours[name], equal_nan=True) for name in given):
            continue
        for name in node.output:
            if name not in theirs or (why := _apart(theirs[name], ours[name])) is None:
                continue
            exact = _exactly(node, model, {x: ours[x] for x in given}).get(name)
            if exact is None or _apart(exact.astype(ours[name].dtype), ours[name]) is not None:
                return f"node {node.name!r}, operator {node.op_type}: {why}"
    return ""


def _exactly(
    node: onnx.NodeProto, model: onnx.ModelProto, operands: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the standard's reference makes of a node's operands in float64; nothing where one is not known."""
    from onnx.reference import ReferenceEvaluator

    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer} | dict(operands)
    if not all(name in held for name in node.input if name):
        return {}
    feeds = {name: held[name] for name in node.input if name}
    wide = {name: x.astype(np.float64) if x.dtype.kind in "fV" else x for name, x in feeds.items()}
    opsets = {o.domain: o.version for o in model.opset_import}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(node, opsets=opsets).run(None, wide)
    return {name: np.asarray(x) for name, x in zip(node.output, results, strict=False)}


def _backward(number: int) -> str:
    """`slopes_differ` of the random graph of a number, at a random place."""
    rng = np.random.default_rng([KINDS.index("graphs"), number])
    model = random_graph(rng, TensorProto.DOUBLE)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return slopes_differ(model, {"x": rng.normal(size=shape)}, rng)


def _beside_onnx_ad(number: int) -> tuple[str, str]:
    """The gradient of a random graph, and what onnxruntime computes with onnx-ad's reverse graph of it.

    In float32, for which onnxruntime has every kernel.
    """
    import onnx_ad
    import onnx_ir as ir

    from onward.autodiff import gradients
    from onward.autodiff.step import OPSET
    from onward.engine import Interpreter
    from onward.graph import Builder, dims_of
    from onward.model import from_bytes, upgrade
    from onward.passes import fold_shapes

    rng = np.random.default_rng([KINDS.index("graphs"), number])
    model = random_graph(rng)
    (given,), (result,) = model.graph.input, model.graph.output
    x, dy = (
        rng.normal(size=[d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in (given, result)
    )
    try:
        reverse = onnx_ad.reverse(model, layout="onnx")
    except onnx_ad.UnsupportedOperator as error:
        return f"refused by onnx-ad: {error}", ""
    # a trailing axis counts the directions
    theirs = _by_onnxruntime(reverse.SerializeToString(), {"x": x, f"adj_{result.name}": dy[..., None]})
    if theirs is None:
        return "refused by onnxruntime", ""
    program = fold_shapes(upgrade(from_bytes(model.SerializeToString()), OPSET)).clone()
    g, y = Builder(program.graph), program.graph.outputs[0]
    seed = g.input("seed", ir.DataType.FLOAT, dims_of(y) or ())
    (dx,) = gradients(g, {y: seed}, [program.graph.inputs[0]])
    ours = np.zeros_like(x)
    if dx is not None:
        g.output(dx, "gradient")
        ours = Interpreter(program.graph).run({"x": x, "seed": dy})["gradient"]
    apart = _apart(theirs["adj_x"][..., 0], ours)
    return "compared with onnx-ad", "" if apart is None else f"gradient and onnx-ad's: {apart}"


_SIZES = ("Resize", "Upsample")
"""Operators whose float operands are extents."""


def _double(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of float32 in float64, whose weights are inputs, and its inputs with theirs."""
    graph, feeds = model.graph, {name: _widened(array) for name, array in inputs.items()}
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(attribute.t))))
    fixed = {name for node in graph.node if node.op_type in _SIZES for name in node.input}
    weights = [t for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in fixed]
    for tensor in weights:
        feeds[tensor.name] = _widened(numpy_helper.to_array(tensor))
        if tensor.name not in {v.name for v in graph.input}:
            value = helper.make_tensor_value_info(tensor.name, TensorProto.DOUBLE, feeds[tensor.name].shape)
            graph.input.append(value)
        graph.initializer.remove(tensor)
    return model, feeds


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def slopes_differ(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], rng: np.random.Generator) -> str:
    """How the gradient along a random direction differs from central differences of two widths, in float64.

    By all float inputs, of a randomly weighted sum of all float outputs.
    """
    import onnx_ir as ir

    from onward.autodiff import gradients
    from onward.autodiff.step import OPSET
    from onward.engine import Interpreter
    from onward.errors import OnwardError
    from onward.graph import Builder, dims_of
    from onward.model import from_bytes, upgrade
    from onward.passes import fold_shapes

    feeds = dict(feeds)
    try:
        program = fold_shapes(upgrade(from_bytes(model.SerializeToString()), OPSET)).clone()
        xs = [x for x in program.graph.inputs if x.dtype is ir.DataType.DOUBLE]
        ys = [y for y in program.graph.outputs if y.dtype is ir.DataType.DOUBLE]
        if not xs or not ys:
            return ""
        values = Interpreter(program.graph).run(feeds)
        g = Builder(program.graph)
        seeds = {y: g.input(f"seed.{i}", ir.DataType.DOUBLE, dims_of(y) or ()) for i, y in enumerate(ys)}
        slopes = {x: dx for x, dx in zip(xs, gradients(g, seeds, xs), strict=True) if dx is not None}
        for i, dx in enumerate(slopes.values()):
            g.output(dx, f"gradient.{i}")
    except OnwardError as error:
        return f"no gradient: {error}"[:400]
    names = [y.name or "" for y in ys]
    if not all(np.all(np.isfinite(values[name])) for name in names):
        return ""
    along = {x.name or "": rng.normal(size=feeds[x.name or ""].shape) for x in xs}
    weights = {f"seed.{i}": rng.normal(size=values[name].shape) for i, name in enumerate(names)}
    run = Interpreter(program.graph).run
    found = run(feeds | weights)

    def slope(width: float) -> float:
        ahead, behind = (
            run(feeds | weights | {name: feeds[name] + s * width * way for name, way in along.items()})
            for s in (1, -1)
        )
        parts = [
            np.sum((ahead[name] - behind[name]) * w) for name, w in zip(names, weights.values(), strict=True)
        ]
        return float(sum(parts) / (2 * width))

    got = float(sum(np.sum(found[f"gradient.{i}"] * along[x.name or ""]) for i, x in enumerate(slopes)))
    want, narrow = slope(1e-5), slope(1e-6)
    scale = max(1.0, abs(want))
    if not math.isfinite(want) or abs(want - narrow) > 1e-4 * scale:
        return ""  # beside a kink, or beyond what differences tell
    return "" if abs(got - want) <= 1e-3 * scale else f"gradient {got:.6g}, central differences {want:.6g}"


def work(jobs: list[tuple[str, int]], keep: Path | None, nnsmith: Path | None = None) -> None:
    """Judge files, a line of JSON each, before and after."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for kind, number in jobs:
        print(json.dumps(["begin", kind, number]), flush=True)
        try:
            result, wrong = judge(kind, number, keep, nnsmith)
        except Exception as error:  # noqa: BLE001, what is not ours is the finding
            result, wrong = "internal error", f"{type(error).__name__}: {error}"[:400]
        print(json.dumps(["end", result, wrong]), flush=True)


def run_batch(
    jobs: list[tuple[str, int]], keep: Path | None = None, nnsmith: Path | None = None
) -> list[tuple[str, int, str, str]]:
    """Judge files in processes of their own: one that ends or hangs is charged to its file, others go on."""
    done: list[tuple[str, int, str, str]] = []
    while len(done) < len(jobs):
        left = jobs[len(done) :]
        given = [sys.executable, "-m", "benchmarks.fuzz_models", "--work", json.dumps(left)]
        given += [] if keep is None else ["--keep", str(keep)]
        given += [] if nnsmith is None else ["--nnsmith", str(nnsmith)]
        reason = ""
        try:
            ran = subprocess.run(
                given, capture_output=True, text=True, timeout=60 + SECONDS * len(left), check=False
            )
            output, reason = ran.stdout, f"process ended with {ran.returncode}: {ran.stderr[-300:]}"
        except subprocess.TimeoutExpired as error:
            output, reason = (error.stdout or b"").decode(), "hangs"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
        ends = [line for line in lines if line[0] == "end"]
        done += [(*job, result, wrong) for job, (_, result, wrong) in zip(left, ends, strict=False)]
        if len(ends) < len(left):
            done.append((*left[len(ends)], "process lost", reason))
    return done


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the first file")
    parser.add_argument("--count", type=int, default=300, help="files of each kind")
    parser.add_argument("--batch", type=int, default=50, help="files of a process")
    parser.add_argument(
        "--kinds", help=f"of {','.join((*KINDS, ADJOINT))}; the first three, or with --nnsmith none"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    parser.add_argument("--nnsmith", type=Path, help="a folder of graphs, each of which is replayed")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work([(kind, number) for kind, number in json.loads(options.work)], options.keep, options.nnsmith)
        return 0
    chosen = options.kinds if options.kinds is not None else "" if options.nnsmith else ",".join(KINDS)
    numbers: Sequence[int] = range(options.seed, options.seed + options.count)
    runs = [(kind, numbers) for kind in chosen.split(",") if kind]
    if options.nnsmith is not None:
        runs.append((NNSMITH, sorted(int(path.stem) for path in options.nnsmith.glob("*.onnx"))))
    failures = 0
    for kind, numbers in runs:
        if not numbers:
            print(f"{kind}: no files")
            return 2
        counts: collections.Counter[str] = collections.Counter()
        for first in range(0, len(numbers), options.batch):
            jobs = [(kind, number) for number in numbers[first : first + options.batch]]
            for _, number, result, wrong in run_batch(jobs, options.keep, options.nnsmith):
                counts[result] += 1
                if wrong:
                    failures += 1
                    print(f"  {kind} {number}: {result}: {wrong}", flush=True)
        told = ", ".join(f"{n} {result}" for result, n in counts.most_common())
        print(f"{kind}, seeds {numbers[0]} to {numbers[-1]}: {told}", flush=True)
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

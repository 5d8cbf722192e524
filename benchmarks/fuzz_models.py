"""Models that nobody wrote: files with changed bytes, changed structure, and random graphs.

python -m benchmarks.fuzz_models [--seed N] [--count N] [--batch N] [--kinds KIND,...] [--keep DIR]

bytes       a sound file in which some bytes were changed, cut off or doubled
structure   a sound file with other attributes, shapes, operands, types, operators, opsets
graphs      a random graph of our operators; forward against onnxruntime in both engines, and its gradient
            against central differences along a random direction, in float64

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ENGINES: tuple[Literal["interpreter", "compiled"], ...] = ("interpreter", "compiled")
KINDS = ("bytes", "structure", "graphs")
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
    """A sound file, damaged."""
    model = random_graph(rng)
    data = bytearray(model.SerializeToString())
    weights = [t.raw_data for t in model.graph.initializer if len(t.raw_data) >= 8]
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(data)))
        if weights and rng.random() < 0.6:  # names are most of a small file, and without one it is refused
            inside = weights[int(rng.integers(len(weights)))]
            at = max(0, data.find(inside)) + int(rng.integers(len(inside)))
        match int(rng.integers(9)):
            case 0 | 1 | 2:
                data[at] = int(rng.integers(256))
            case 3 | 4 | 5:
                data[at] ^= 1 << int(rng.integers(8))
            case 6:
                del data[at : at + int(rng.integers(1, 9))]
            case 7:
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
                with contextlib.suppress(ValueError, TypeError, KeyError):  # its type may have been changed
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


def judge(kind: str, number: int, keep: Path | None = None) -> tuple[str, str]:
    """What became of a file: its class, and what is wrong with it, if anything is."""
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


def _forward(data: bytes, rng: np.random.Generator, *, sound: bool) -> tuple[str, str]:
    from onward.engine import Session
    from onward.errors import OnwardError
    from onward.model import from_bytes

    try:
        model = from_bytes(data)
    except OnwardError as error:
        return "refused at reading", str(error) if sound else ""
    results: list[dict[str, Any] | str] = []
    feeds: dict[str, np.ndarray] = {}
    for engine in ENGINES:
        try:
            with Session(model, engine=engine) as session:
                if not feeds:
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
        return "refused at running", f"engines part: {slow} | {fast}"[:400] if one_failed or sound else ""
    wrong = _difference(slow, fast, "interpreter and compiled")
    expected = _by_onnxruntime(data, feeds)
    if expected is None:
        return "ran, onnxruntime does not", wrong
    return "ran and compared", wrong or _difference(expected, slow, "onnxruntime and interpreter")


def _by_onnxruntime(data: bytes, feeds: dict[str, np.ndarray]) -> dict[str, Any] | None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    except Exception:  # noqa: BLE001, whatever it raises, it does not run the file
        return None


def _difference(expected: dict[str, Any], found: dict[str, Any], who: str) -> str:
    for name, want in expected.items():
        got = np.asarray(found[name])
        if got.shape != np.shape(want):
            return f"{who}: shapes {np.shape(want)} and {got.shape}"
        if np.asarray(want).dtype.kind != "f":
            continue
        want64, got64 = np.asarray(want, np.float64), got.astype(np.float64)
        scale = max(1.0, float(np.max(np.abs(want64[np.isfinite(want64)]), initial=0.0)))
        if not np.allclose(got64, want64, rtol=2e-3, atol=2e-4 * scale, equal_nan=True):
            return f"{who}: {float(np.nanmax(np.abs(got64 - want64))):.3g} apart, of {scale:.3g}"
    return ""


def _backward(number: int) -> str:
    """The gradient along a random direction against central differences of two widths, in float64."""
    import onnx_ir as ir

    from onward.autodiff import gradients
    from onward.engine import Interpreter
    from onward.errors import OnwardError
    from onward.graph import Builder, canonical_model, dims_of
    from onward.model import from_bytes

    rng = np.random.default_rng([KINDS.index("graphs"), number])
    try:
        model = canonical_model(from_bytes(random_graph(rng, TensorProto.DOUBLE).SerializeToString())).clone()
        x, y = model.graph.inputs[0], model.graph.outputs[0]
        g = Builder(model.graph)
        seed = g.input("seed", ir.DataType.DOUBLE, dims_of(y) or ())
        (dx,) = gradients(g, {y: seed}, [x])
    except OnwardError as error:
        return f"no gradient: {error}"[:400]
    if dx is None:
        return ""
    g.output(dx, "gradient")
    run = Interpreter(model.graph).run
    shape = [d for d in x.shape or () if isinstance(d, int)]
    at, along = rng.normal(size=shape), rng.normal(size=shape)
    weights = rng.normal(size=[d for d in y.shape or () if isinstance(d, int)])
    name = y.name or ""
    found = run({"x": at, "seed": weights})["gradient"]

    def slope(width: float) -> float:
        ahead, behind = (run({"x": at + s * width * along, "seed": weights})[name] for s in (1, -1))
        return float(np.sum((ahead - behind) * weights) / (2 * width))

    got, want, narrow = float(np.sum(found * along)), slope(1e-5), slope(1e-6)
    scale = max(1.0, abs(want))
    if not math.isfinite(want) or abs(want - narrow) > 1e-4 * scale:
        return ""  # beside a kink, or beyond what differences tell
    return "" if abs(got - want) <= 1e-3 * scale else f"gradient {got:.6g}, central differences {want:.6g}"


def work(jobs: list[tuple[str, int]], keep: Path | None) -> None:
    """Judge files, a line of JSON each, before and after."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for kind, number in jobs:
        print(json.dumps(["begin", kind, number]), flush=True)
        try:
            result, wrong = judge(kind, number, keep)
        except Exception as error:  # noqa: BLE001, what is not ours is the finding
            result, wrong = "internal error", f"{type(error).__name__}: {error}"[:400]
        print(json.dumps(["end", result, wrong]), flush=True)


def run_batch(jobs: list[tuple[str, int]], keep: Path | None = None) -> list[tuple[str, int, str, str]]:
    """Judge files in processes of their own: one that ends or hangs is charged to its file, others go on."""
    done: list[tuple[str, int, str, str]] = []
    while len(done) < len(jobs):
        left = jobs[len(done) :]
        given = [sys.executable, "-m", "benchmarks.fuzz_models", "--work", json.dumps(left)]
        given += [] if keep is None else ["--keep", str(keep)]
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
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--keep", type=Path, help="a folder for the files")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work([(kind, number) for kind, number in json.loads(options.work)], options.keep)
        return 0
    failures = 0
    for kind in options.kinds.split(","):
        counts: collections.Counter[str] = collections.Counter()
        numbers = range(options.seed, options.seed + options.count)
        for first in range(0, len(numbers), options.batch):
            jobs = [(kind, number) for number in numbers[first : first + options.batch]]
            for _, number, result, wrong in run_batch(jobs, options.keep):
                counts[result] += 1
                if wrong:
                    failures += 1
                    print(f"  {kind} {number}: {result}: {wrong}", flush=True)
        told = ", ".join(f"{n} {result}" for result, n in counts.most_common())
        print(f"{kind}, seeds {numbers.start} to {numbers.stop - 1}: {told}", flush=True)
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

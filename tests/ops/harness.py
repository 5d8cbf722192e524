"""What the operator suites share: cases, the graphs made of them, and the runs that are compared."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.autodiff import gradients
from onward.engine.interpreter import Interpreter
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    Builder,
    canonical_graph,
    canonical_model,
    dims_of,
    find,
    has_body,
    is_float,
    numpy_dtype,
)
from onward.passes import cast_floats, expand_onward

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

OPSET = 21
"""The opset that gradient rules are written in, and that cases have by default."""

ORT_OPSET = 26
"""The newest opset that onnxruntime loads."""


@dataclass(frozen=True)
class Case:
    """One operator with its operands.

    Attributes:
        op_type: the operator.
        inputs: an operand each. A tuple of ints is the shape of normally distributed floats. A list is an
            int64 vector, an int a scalar of that. An array is itself, floats in float64 meaning "the
            model's type". None is an absent optional input.
        attrs: the attributes.
        domain: empty for the standard.
        opset: of the standard's operators in the graph.
        outputs: how many, or their names ("" for an absent one).
        wrt: the inputs to differentiate by; None: those that the schema calls differentiable, or for
            `ai.onward` all floats; (): the case has no gradient check.
        seeds: the outputs that a gradient arrives at; None: those that the schema calls differentiable, or
            for `ai.onward` all floats.
        batch: the inputs whose first extent is the symbolic N. Such a case also runs with an empty batch.
        runtime: the integer and boolean inputs that are graph inputs; otherwise integers are constants.
        constants: the float inputs that are constants in the graph.
        kinks: operand values where the slope jumps; shapes are filled with values away from them.
        without_ort: why onnxruntime is left out, if it is.
        rtol, atol: between float32 runs of different engines.
        name: tells cases of an operator apart.
    """

    op_type: str
    inputs: Sequence[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    opset: int = OPSET
    outputs: int | Sequence[str] = 1
    wrt: Sequence[int] | None = None
    seeds: Sequence[int] | None = None
    batch: Sequence[int] = ()
    runtime: Sequence[int] = ()
    constants: Sequence[int] = ()
    kinks: Sequence[float] = ()
    without_ort: str = ""
    rtol: float = 1e-4
    atol: float = 1e-5
    name: str = ""

    @property
    def id(self) -> str:
        """A readable name, unique enough to find the case by."""
        operands = ",".join("-" if x is None else _written(x) for x in self.inputs)
        attrs = ",".join(
            f"{k}={v}" for k, v in self.attrs.items() if isinstance(v, int | float | str | tuple)
        )
        return self.name or f"{self.op_type}-{self.opset}({operands}){'{' + attrs + '}' if attrs else ''}"

    def operands(self, *, empty_batch: bool = False) -> list[Array | None]:
        """The operands: floats in float32, the same at every call."""
        rng = np.random.default_rng(zlib.crc32(self.id.encode()))
        arrays: list[Array | None] = []
        for i, content in enumerate(self.inputs):
            if content is None:
                arrays.append(None)
                continue
            if isinstance(content, tuple):
                array = away(rng.normal(size=content), self.kinks)
            else:
                array = np.asarray(content, np.int64 if isinstance(content, list | int) else None)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            arrays.append(array[:0] if empty_batch and i in self.batch else array)
        return arrays

    def seeded(self, count: int) -> set[int]:
        """The outputs that a gradient arrives at, of this many."""
        if self.seeds is not None:
            return set(self.seeds)
        return set(range(count)) if self.domain else differentiable_outputs(self.op_type, self.opset, count)

    def differentiated(self) -> tuple[int, ...]:
        """The inputs to differentiate by."""
        if self.wrt is not None:
            return tuple(self.wrt)
        floats = [i for i, x in enumerate(self.operands()) if x is not None and x.dtype == np.float32]
        if self.domain == ONWARD_DOMAIN:
            return tuple(floats)
        marked = differentiable_inputs(self.op_type, self.opset, len(self.inputs))
        return tuple(i for i in floats if i in marked)


def _written(operand: Any) -> str:
    if isinstance(operand, list | int):
        return str(operand).replace(" ", "")
    shape = operand if isinstance(operand, tuple) else np.shape(operand)
    return "x".join(map(str, shape)) or "scalar"


def differentiable_outputs(op_type: str, opset: int, count: int) -> set[int]:
    """The positions of the outputs that the schema calls differentiable; the first where it calls none so."""
    import onnx

    formals = onnx.defs.get_schema(op_type, opset).outputs
    wanted = onnx.defs.OpSchema.DifferentiationCategory.Differentiable
    marked = [i for i in range(count) if formals[min(i, len(formals) - 1)].differentiation_category == wanted]
    return set(marked or [0])


def differentiable_inputs(op_type: str, opset: int, count: int) -> set[int]:
    """The positions of the inputs that the schema calls differentiable."""
    import onnx

    formals = onnx.defs.get_schema(op_type, opset).inputs
    wanted = onnx.defs.OpSchema.DifferentiationCategory.Differentiable
    return {i for i in range(count) if formals[min(i, len(formals) - 1)].differentiation_category == wanted}


def away(x: Array, kinks: Sequence[float], by: float = 0.05) -> Array:
    """x with elements that are near a kink moved to `by` beside it."""
    for kink in kinks:
        x = np.where(np.abs(x - kink) < by, kink + np.where(x < kink, -by, by), x).astype(x.dtype)
    return x


def has_gradient(case: Case) -> bool:
    """Whether the operator of the case has a gradient rule, or a body whose operators have."""
    opset = 1 if case.domain else case.opset
    if has_body(case.domain, case.op_type, opset):
        return True
    return hasattr(find(case.domain, case.op_type, opset), "gradient")


def model_of(case: Case, *, gradient: bool = False) -> ir.Model:
    """A graph of the case's node: inputs `x0`…, outputs `y0`…; with `gradient` also inputs `dy0`… and outputs
    `dx0`…, the product of the dy with the Jacobian.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": case.opset}, name="case")
    if case.domain:
        graph.opset_imports[case.domain] = 1
    g = Builder(graph)
    values: list[ir.Value | None] = []
    for i, array in enumerate(case.operands()):
        if array is None:
            values.append(None)
        elif i in case.constants or (array.dtype.kind in "iu" and i not in case.runtime):
            values.append(g.initializer(f"x{i}", array))
        else:
            dims: list[int | str] = list(array.shape)
            if i in case.batch:
                dims[0] = "N"
            values.append(g.input(f"x{i}", ir.tensor(array).dtype, dims))
    names = [None] * case.outputs if isinstance(case.outputs, int) else list(case.outputs)
    results = g.emit(case.op_type, *values, domain=case.domain, outputs=names, **dict(case.attrs))
    outputs = [(i, y) for i, y in enumerate(results) if y.name]
    for i, y in outputs:
        g.output(y, f"y{i}")
    if gradient:
        if has_body(case.domain, case.op_type, 1 if case.domain else case.opset):
            g = Builder(canonical_graph(graph))
            named = {v.name: v for v in (*g.graph.inputs, *g.graph.initializers.values())}
            values = [None if v is None else named[v.name] for v in values]
            outputs = [(i, g.graph.outputs[at]) for at, (i, _) in enumerate(outputs)]
            graph = g.graph
        marked = case.seeded(len(results))
        seeds = {
            y: g.input(f"dy{i}", y.dtype or ir.DataType.FLOAT, dims_of(y) or ())
            for i, y in outputs
            if is_float(y) and i in marked
        }
        wrt = case.differentiated()
        operands = [v for i in wrt if (v := values[i]) is not None]
        for i, dx in zip(wrt, gradients(g, seeds, operands), strict=True):
            if dx is not None:
                g.output(dx, f"dx{i}")
    return ir.Model(graph, ir_version=10)


def feed(case: Case, model: ir.Model, *, empty_batch: bool = False) -> dict[str, Array]:
    """An array for each input of the model: the operands, and normally distributed dy."""
    operands = case.operands(empty_batch=empty_batch)
    inputs = {f"x{i}": x for i, x in enumerate(operands) if x is not None}
    rng = np.random.default_rng(7)
    forward = [v for v in model.graph.inputs if not (v.name or "").startswith("dy")]
    fed = {v.name or "": inputs[v.name or ""] for v in forward}
    seeds = [v for v in model.graph.inputs if (v.name or "").startswith("dy")]
    if seeds:
        shapes = {name: y.shape for name, y in run(model_of(case), fed).items()}
        for v in seeds:
            dy = rng.normal(size=shapes[(v.name or "")[1:]])
            fed[v.name or ""] = dy.astype(numpy_dtype(v.dtype or ir.DataType.FLOAT))
    return fed


def with_ort(case: Case) -> bool:
    """Whether onnxruntime is asked too."""
    return not case.without_ort and case.opset <= ORT_OPSET


def run(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by the interpreter."""
    return Interpreter(model.graph).run(dict(inputs))


def run_ort(model: ir.Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by onnxruntime, `ai.onward` replaced by its bodies."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(expand_onward(model))
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def in_double(model: ir.Model, inputs: Mapping[str, Array]) -> tuple[ir.Model, dict[str, Array]]:
    """A model and its inputs with float64 for float32."""
    wide = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in inputs.items()}
    # an operator that takes no float64 may have a body that does
    return cast_floats(canonical_model(model), ir.DataType.DOUBLE), wide


def for_double(case: Case) -> Case:
    """The case at an opset where its operator takes float64: its own, else the newest."""
    import onnx

    if case.domain:
        return case
    schema = onnx.defs.get_schema(case.op_type, case.opset)
    types = {t for c in schema.type_constraints for t in c.allowed_type_strs}
    if "tensor(double)" in types or not any(a.type_str == "T" for a in schema.inputs):
        return case
    return dataclasses.replace(case, opset=onnx.defs.onnx_opset_version(), name=case.id)


def assert_same(got: Mapping[str, Array], want: Mapping[str, Array], rtol: float, atol: float) -> None:
    """Equal names, element types and shapes; values within tolerances that scale with the largest one."""
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype, f"{name}: {got[name].dtype} for {array.dtype}"
        assert got[name].shape == array.shape, f"{name}: {got[name].shape} for {array.shape}"
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], array, err_msg=name)
            continue
        finite = np.abs(array[np.isfinite(array)])
        scale = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=atol * scale, err_msg=name)


def slope(f: Callable[[Array], float], x: Array, direction: Array, step: float = 1e-4) -> float:
    """The derivative of f at x along a direction: central differences of fourth order."""
    near = f(x + step * direction) - f(x - step * direction)
    far = f(x + 2 * step * direction) - f(x - 2 * step * direction)
    return (8 * near - far) / (12 * step)

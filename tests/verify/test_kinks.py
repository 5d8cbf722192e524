"""Kinks are recognised, and hide no fault."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.verify.mutating import Mutation, ours_runs, replaced, stale, times
from tests.verify.test_zoo_training import SMALL

from onward import nn, verify
from onward.autodiff import training_step
from onward.graph import bind, registered
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.train.optimizers import SGD
from onward.verify.kinks import KINKED, near_kinks
from onward.verify.witness import Witness


def kinked_network(activation: nn.Layer) -> ir.Model:
    layers = [nn.Dense(8, name="hidden"), activation, nn.Dense(3, name="head")]
    return nn.Sequential(layers, input_shape=(6,), name="small").model


def at_the_kink(model: ir.Model, x: np.ndarray, node: str) -> float:
    """Move a bias so that unit 2 of sample 1 is as little above 0 as float32 allows; returns its value."""
    made = next(n for n in model.graph if n.name == node).inputs[0]
    probe = model.clone()
    probe.graph.outputs.append(next(v for n in probe.graph for v in n.outputs if v.name == made.name))
    bias = model.graph.initializers["hidden.bias"]
    array = bias.const_value.numpy().copy()
    for _ in range(20):
        bias.const_value = ir.tensor(array, name=bias.name)
        probe.graph.initializers["hidden.bias"].const_value = bias.const_value
        z = float(Witness(probe).run({"input": x}, [made.name])[made.name][1, 2])
        if 0 < z < 1e-6:
            return z
        array[2] -= np.float32(z) if abs(z) > 1e-6 else np.float32(-3e-8)
    raise AssertionError("no bias brings the unit to the kink")


@pytest.mark.parametrize(
    ("layer", "node"), [(nn.ReLU(name="act"), "act/Relu"), (nn.LeakyReLU(name="act"), "act/LeakyRelu")]
)
def test_a_unit_pushed_over_the_kink_by_rounding_is_held(monkeypatch, layer, node):
    model = kinked_network(layer)
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    z = at_the_kink(model, x, node)
    over = np.zeros((2, 8), np.float32)
    over[1, 2] = -2 * z
    before = next(n for n in model.graph if n.name == node).inputs[0].producer()
    batch = {"inputs": {"input": x}, "targets": {"output": np.array([0, 2])}}

    assert verify.compare_training(model, steps=1, **batch).verdict == "agree"
    ours_runs(monkeypatch, times(before.name, 1.0, plus=over))
    report = verify.compare_training(model, steps=1, **batch)
    assert report.verdict == "kinks", str(report)
    assert report.passed
    assert (report.kinks, report.kinked) == (1, (node,))
    assert "after 1 unit at kinks held the same" in str(report)
    data = report.to_dict()
    assert (data["verdict"], data["kinks"], data["kinked"]) == ("kinks", 1, [node])


def test_a_unit_far_from_the_kink_is_not_held(monkeypatch):
    model = kinked_network(nn.ReLU(name="act"))
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    z = at_the_kink(model, x, "act/Relu")
    over = np.zeros((2, 8), np.float32)
    over[1, 2] = -z - 1e-4
    before = next(n for n in model.graph if n.name == "act/Relu").inputs[0].producer()
    ours_runs(monkeypatch, times(before.name, 1.0, plus=over))
    report = verify.compare_training(
        model, inputs={"input": x}, targets={"output": np.array([0, 2])}, steps=1
    )
    assert report.verdict == "differ", str(report)


def step_nodes(name: str) -> tuple[ir.Model, list[ir.Node]]:
    model = zoo.build(name, **SMALL[name]).model
    return model, step_of(model)


def step_of(model: ir.Model) -> list[ir.Node]:
    """The nodes of the training step that is compared."""
    step = training_step(
        model,
        verify.default_losses(model),
        SGD(),
        trainable_initializers(model),
        expose_gradients=True,
    )
    return list(step.model.graph)


def planted(fault: str, nodes: list[ir.Node]) -> tuple[str, Mutation]:
    """The node that is made wrong in the middle of a network's step, and how."""
    if fault in ("mask", "off"):
        masks = [n for n in nodes if n.op_type == "Greater" and (n.name or "").startswith("grad/")]
        name = masks[len(masks) // 2].name
        return name, replaced(name, "GreaterOrEqual" if fault == "mask" else "Less")
    if fault == "stale":
        readers = [
            n
            for n in nodes
            if n.op_type in ("Conv", "MatMul", "Gemm")
            and not (n.name or "").startswith("grad/")
            and n.inputs[1].is_initializer()
        ]
        node = readers[len(readers) // 2]
        return node.name, stale(node.name, node.inputs[1].name)
    kinds = ("ConvGradWeight", "MatMul", "Gemm")
    products = [n for n in nodes if n.op_type in kinds and (n.name or "").startswith("grad/")]
    products = [n for n in products if n.outputs[0].shape is not None and n.outputs[0].is_graph_output()]
    node = products[len(products) // 2]
    if fault == "sign":
        return node.name, times(node.name, -1.0)
    if fault == "row":
        kept = np.ones((int(node.outputs[0].shape[0]), *(1,) * (len(node.outputs[0].shape) - 1)))
        kept[0] = 0
        return node.name, times(node.name, kept)
    return node.name, times(node.name, 1.003)


CASES = [
    (network, fault)
    for network in ("lenet5", "mlp", "resnet20", "textcnn")
    for fault in ("sign", "mask", "off", "stale", "row", "scale")
    # the maximum over time passes nothing to units that are off: there a mask that is on for them is right
    if (network, fault) != ("textcnn", "mask")
]


@pytest.mark.parametrize(("network", "fault"), CASES)
def test_a_fault_is_no_kink_and_no_rounding(monkeypatch: Any, network: str, fault: str) -> None:
    model, nodes = step_nodes(network)
    name, mutate = planted(fault, nodes)
    ours_runs(monkeypatch, mutate)
    report = verify.compare_training(model, batch=3, steps=2, learning_rate=0.1)
    assert report.verdict == "differ", str(report)
    assert report.first_difference is not None
    assert report.first_difference.node == name, str(report)


@pytest.mark.parametrize("fault", ["grad/head/Gemm", "grad/hidden/Gemm"])
def test_a_fault_beside_a_kink_is_found(monkeypatch, fault):
    model = kinked_network(nn.ReLU(name="act"))
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    z = at_the_kink(model, x, "act/Relu")
    over = np.zeros((2, 8), np.float32)
    over[1, 2] = -2 * z
    before = next(n for n in model.graph if n.name == "act/Relu").inputs[0].producer()
    names = [
        n.name for n in step_of(model) if (n.name or "").startswith(fault) and n.outputs[0].is_graph_output()
    ]

    def mutate(step: ir.Model) -> None:
        times(before.name, 1.0, plus=over)(step)
        times(names[0], 1.002)(step)

    ours_runs(monkeypatch, mutate)
    report = verify.compare_training(
        model, inputs={"input": x}, targets={"output": np.array([0, 2])}, steps=1
    )
    assert report.verdict == "differ", str(report)
    assert report.first_difference is not None
    assert report.first_difference.node == names[0], str(report)


def near(model: str, x: np.ndarray, slack: float = 1e-3) -> list[tuple[int, ...]]:
    """The elements of the first operand of a model's only kinked node that are near."""
    node = next(n for n in parsed(model).graph if n.op_type in KINKED)
    weights = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs]
    operands = [x, *(w if w is None or w.dtype.kind in "iu" else w.astype(np.float64) for w in weights[1:])]
    errors = [np.full(x.shape, slack), *(None if w is None else np.zeros(w.shape) for w in operands[1:])]
    units = near_kinks(bind(node, 21), operands, errors)
    return sorted({tuple(map(int, np.unravel_index(i, x.shape))) for u in units for i in u.index})


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g (float[N, M] x) => (y) {text}')
    )


@pytest.mark.parametrize(
    ("node", "row", "found"),
    [
        ("{ y = Relu(x) }", [0.0005, -0.0005, 0.1, -0.1], [0, 1]),
        ("{ y = Abs(x) }", [0.0005, -0.0005, 0.1, -0.1], [0, 1]),
        ("{ y = HardSigmoid<alpha = 0.5, beta = 0.5>(x) }", [-1.0005, 0.9995, 0.0, 1.1], [0, 1]),
        ("{ y = HardSwish(x) }", [-3.0, 3.0005, 0.0, 2.9], [0, 1]),
        ("{ y = Shrink<lambd = 0.25>(x) }", [0.2505, -0.2495, 0.0, 0.26], [0, 1]),
        ("{ y = ThresholdedRelu<alpha = 0.25>(x) }", [0.2505, 0.0, 0.26, 0.24], [0]),
        ("<float lo = {-1}, float hi = {2}> { y = Clip(x, lo, hi) }", [-1.0005, 1.9995, 0.0, 2.1], [0, 1]),
        ("<float c = {0.5}> { y = Max(x, c) }", [0.4995, 0.0, 0.5005, 1.0], [0, 2]),
        ("<float c = {0.5}> { y = Greater(x, c) }", [0.4995, 0.0, 0.5005, 1.0], [0, 2]),
        ("{ y = Floor(x) }", [0.9995, 2.0, 0.5, 1.4], [0, 1]),
        ("{ y = Round(x) }", [0.4995, 2.0, 1.5005, 1.4], [0, 2]),
        ("{ y = Cast<to = 7>(x) }", [0.9995, 2.0, 0.5, 1.4], [0, 1]),
        ("<int64[1] a = {1}> { y = ReduceMax(x, a) }", [0.5, 0.4995, 0.4, -0.5], [1]),
        ("<int64[1] a = {1}> { y = ReduceMin(x, a) }", [-0.5, -0.4995, 0.4, 0.5], [1]),
        ("{ y = ArgMax<axis = 1>(x) }", [0.5, 0.4, 0.4995, 0.5005], [0, 2]),
        ("{ y = ArgMin<axis = 1>(x) }", [-0.5, 0.4, 0.4, -0.4995], [3]),
        ("{ y = Hardmax(x) }", [0.5, 0.4995, 0.4, -0.5], [1]),
        ("<int64[1] k = {2}> { y, i = TopK(x, k) }", [0.5, 0.4, 0.3995, 0.3994], [2]),
    ],
)
def test_elements_near_a_kink_are_found(node, row, found):
    assert near(node, np.array([row])) == [(0, i) for i in found]


def test_windows_know_their_second_largest():
    x = np.array([[[[1.0, 0.9995, 0.0], [0.2, 0.1, 0.0], [0.0, 0.0, 0.2005]]]])
    # the window at the lower right has 0.2005 alone; 0.2 is the largest of none
    assert near("{ y = MaxPool<kernel_shape = [2, 2]>(x) }", x) == [(0, 0, 0, 1)]
    assert near("{ y = MaxPool<kernel_shape = [1, 2], pads = [0, 1, 0, 1]>(x) }", x) == [
        (0, 0, 0, 1),
        (0, 0, 2, 1),
    ]
    assert near("{ y = GlobalMaxPool(x) }", x) == [(0, 0, 0, 1)]


def test_what_is_exact_is_not_near():
    assert near("{ y = Relu(x) }", np.zeros((1, 3)), slack=0.0) == []


CHOICES = ("g.Greater", "g.Less", "g.Equal", "g.Sign", "g.ArgM", "MaxPool", "y[1]")
SMOOTH = {
    "CumProd": "compares positions",
    "Einsum": "compares positions",
    "Gather": "indices are integers",
    "GatherElements": "indices are integers",
    "Pow": "the exponent and what is 0 are told apart, and both branches meet there",
    "ReduceL2": "divides by the norm where that is not 0",
    "ReduceProd": "tells zeros apart, and both branches meet there",
    "MeanVarianceNormalization": "divides by what is not 0",
    "ScatterElements": "compares positions",
}


def test_every_operator_whose_gradient_chooses_has_its_kinks_here():
    missing = []
    for (domain, name), versions in registered().items():
        sources = [inspect.getsource(c.gradient) for c in versions.values() if hasattr(c, "gradient")]
        if domain == "" and any(word in text for text in sources for word in CHOICES):
            missing += [name] if name not in KINKED and name not in SMOOTH else []
    assert missing == []

"""Every network of the zoo: the whole training step in Onward and in a stock onnxruntime, per tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward import verify
from onward.autodiff import training_step
from onward.engine import StepSession
from onward.model import load, trainable_initializers
from onward.nn import zoo
from onward.train.optimizers import SGD

SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"num_classes": 5, "image_size": 67, "width": 0.1},
    "audiocnn": {"bands": 8, "frames": 12, "filters": 6},
    "lenet5": {"image_size": 12},
    "lstm_classifier": {"vocabulary_size": 50, "length": 6, "embedding_size": 8, "units": 8},
    "mlp": {"input_shape": (12,), "hidden": (8, 6)},
    "mobilenet_v2": {"num_classes": 5, "image_size": 64, "width": 0.25},
    "resnet18": {"num_classes": 5, "image_size": 64, "width": 0.125},
    "resnet20": {"image_size": 16, "width": 0.5},
    "resnet50": {"num_classes": 5, "image_size": 64, "width": 0.125},
    "textcnn": {"vocabulary_size": 50, "length": 12, "embedding_size": 8, "filters": 6},
    "transformer_encoder": {
        "vocabulary_size": 50,
        "length": 6,
        "layers": 2,
        "size": 16,
        "heads": 4,
        "hidden": 24,
    },
    "vgg11": {"num_classes": 5, "image_size": 32, "width": 0.1, "hidden": 24},
}
SLOW = {"mobilenet_v2", "resnet50"}
DROPS = {"alexnet", "audiocnn", "lstm_classifier", "mobilenet_v2", "textcnn", "transformer_encoder", "vgg11"}

BRANCH_SCALE = 0.1


def calm_branches(model: ir.Model) -> None:
    """Scale every residual branch down (Goyal et al. 2017, arXiv:1706.02677, start it at 0).

    At its first parameters a network of fifty normalised layers multiplies a relative error of 1e-7 by more
    than a thousand; then the engines' rounding, and not their agreement, decides what is seen.
    """
    for node in model.graph:
        if node.op_type != "Add" or len(node.inputs) != 2:
            continue
        for value in node.inputs:
            norm = value.producer() if value is not None else None
            shortcut = norm is not None and "downsample" in (norm.name or "")
            branch = norm is not None and norm.op_type == "BatchNormalization" and len(value.uses()) == 1
            if branch and not shortcut:
                scale = norm.inputs[1]
                scale.const_value = ir.tensor(
                    np.full(scale.shape.numpy(), BRANCH_SCALE, np.float32), name=scale.name
                )


def test_every_network_is_here():
    assert set(SMALL) == set(zoo.names())


def networks(names: Iterable[str]) -> list[Any]:
    """Parameters for pytest: slow networks are marked."""
    marks = dict.fromkeys(SLOW, pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in sorted(names)]


@pytest.mark.parametrize("name", networks(SMALL))
def test_the_training_step_agrees_with_onnxruntime(name):
    """Loss, outputs, gradients, parameters, momenta and statistics of three steps, each tensor by itself.

    Each engine feeds its own state back. Units within rounding of a kink are held on the same side.
    """
    model = zoo.build(name, **SMALL[name]).model
    calm_branches(model)
    report = verify.compare_training(model, optimizer=SGD(momentum=0.9), batch=3, steps=3)
    assert report.verdict in ("agree", "kinks"), str(report)
    _assert_complete(model, report, name)


def _assert_complete(model: ir.Model, report: verify.Report, name: str) -> None:
    """Nothing was left out, and what was compared is alive."""
    kinds: dict[str, list[verify.TensorRow]] = {}
    for row in report.rows:
        kinds.setdefault(row.kind, []).append(row)
    weights = [
        v.name
        for v in model.graph.initializers.values()
        if v.name and v.name.endswith(("weight", "bias", "scale"))
    ]
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph)
    assert [row.name for row in kinds["parameter"]] == weights
    assert len(kinds["gradient"]) == len(kinds["slot"]) == len(weights)
    assert len(kinds.get("statistic", [])) == 2 * norms
    assert (name in DROPS) == any(node.op_type == "Dropout" for node in model.graph)


@pytest.mark.parametrize("name", networks(DROPS - SLOW))
def test_units_are_really_dropped(name):
    """With the same batch and parameters, the loss depends on the seed of dropout."""
    model = zoo.build(name, **SMALL[name]).model
    losses = verify.default_losses(model)
    step = training_step(model, losses, SGD(), trainable_initializers(model))
    feeds = verify.random_inputs(model, batch=8)
    feeds |= {"target": np.arange(8) % 2, "learning_rate": np.zeros((), np.float32), "step": np.array(0)}
    found = {
        float(StepSession(step.model, step.bindings).run({**feeds, "seed": np.array(seed)})["loss"])
        for seed in (0, 1)
    }
    assert len(found) == 2


@pytest.mark.parametrize("name", networks(SMALL))
def test_the_inference_form_agrees_and_is_exported(name, tmp_path):
    model = zoo.build(name, **SMALL[name]).model
    report = verify.export(model, tmp_path / "model.onnx")
    assert report is not None
    assert report.passed
    kept = {node.op_type for node in load(tmp_path / "model.onnx").graph}
    assert kept == {node.op_type for node in model.graph} - {"Dropout"}

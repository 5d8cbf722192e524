"""A saved training step in a process that knows onnxruntime and NumPy only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward import verify
from onward.autodiff import TrainingStep, training_step
from onward.engine import StepSession
from onward.model import load, save, trainable_initializers
from onward.nn import zoo
from onward.passes import cast_floats, expand_onward
from onward.train.optimizers import SGD

RATE = 0.001
"""Small: at 0.01 the rounding of one step has grown fourfold in the third loss of ResNet-18."""

TRAIN = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime

path, batches, rate = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["onward.training_step"])
names = [output.name for output in session.get_outputs()]
state, losses = {}, []
data = np.load(batches)
for step in range(3):
    feeds = {
        "input": data["input"][step],
        about["targets"]["output"]: data["target"][step],
        about["learning_rate"]: np.array(float(rate), np.float32),
        about["step"]: np.array(step),
    }
    if about["seed"] is not None:
        feeds[about["seed"]] = np.array(3)
    result = dict(zip(names, session.run(names, {**feeds, **state})))
    state = {name: result[target] for name, target in about["bindings"].items()}
    losses.append(float(result[about["loss"]]))
assert not [name for name in sys.modules if name.split(".")[0] in ("onward", "onnx", "onnx_ir")]
print(json.dumps({"losses": losses, "norms": {k: float(np.linalg.norm(v)) for k, v in state.items()}}))
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"num_classes": 5, "image_size": 32, "width": 0.25}),
        ("textcnn", {"vocabulary_size": 50, "length": 12, "embedding_size": 8, "filters": 6}),
        ("lstm_classifier", {"vocabulary_size": 50, "length": 12, "embedding_size": 8, "units": 6}),
    ],
)
def test_a_saved_step_trains_where_onward_is_not(tmp_path, name, options):
    model = zoo.build(name, **options).model
    step = training_step(
        model, verify.default_losses(model), SGD(momentum=0.9), trainable_initializers(model)
    )
    save(expand_onward(step.model), tmp_path / "step.onnx")
    onnx.checker.check_model(str(tmp_path / "step.onnx"), full_check=True)

    batch = 8
    inputs = [verify.random_inputs(model, seed=i, batch=batch)["input"] for i in range(3)]
    targets = np.random.default_rng(0).integers(0, options.get("num_classes", 2), (3, batch))
    np.savez(tmp_path / "batches.npz", input=np.stack(inputs), target=targets)

    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "step.onnx"), str(tmp_path / "batches.npz"), str(RATE)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)

    read = TrainingStep.read(load(tmp_path / "step.onnx"))
    assert read.bindings == step.bindings
    session = StepSession(step.model, step.bindings)
    wide = StepSession(cast_floats(step.model, ir.DataType.DOUBLE), step.bindings, engine="interpreter")
    ours, exact = [], []
    for number in range(3):
        feeds = {
            "input": inputs[number],
            step.targets["output"]: targets[number],
            step.learning_rate: np.full((), RATE, np.float32),
            step.step: np.array(number),
        }
        if step.seed is not None:
            feeds[step.seed] = np.array(3)
        ours.append(float(session.run(feeds)[step.loss]))
        doubles = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in feeds.items()}
        exact.append(float(wide.run(doubles)[step.loss]))
    for losses in (ours, theirs["losses"]):
        np.testing.assert_allclose(losses, exact, rtol=1e-5)
    assert len(set(ours)) == 3
    for key, array in session.state.items():
        assert theirs["norms"][key] == pytest.approx(float(np.linalg.norm(array)), rel=1e-3, abs=1e-5), key

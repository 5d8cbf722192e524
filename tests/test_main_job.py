"""The main job in seconds: define, train, check, export, serve, call."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onward import data, model, nn, train, verify
from onward.engine import Session
from onward_client import Client, InvalidRequestError
from onward_server import ServerThread
from onward_server.model_settings import CrossCheckSettings
from onward_server.settings import ServerSettings


@pytest.fixture(scope="module")
def parts() -> data.Splits:
    """Digits of 8x8 pixels, normalised by the training part."""
    pytest.importorskip("sklearn")
    parts = data.split(data.load_digits(image_size=8), (0.6, 0.2, 0.2), seed=1)
    return parts.map(data.Normalization.fit(parts.train).apply_to)


@pytest.fixture(scope="module")
def trainer(parts: data.Splits) -> train.Trainer:
    """A small convolutional network that has seen the digits six times."""
    network = nn.Sequential(
        [
            nn.Conv2D(8, 3, padding="same", activation="relu"),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Dense(32, "relu"),
            nn.Dense(10),
        ],
        input_shape=(1, 8, 8),
        name="small",
        seed=1,
    )
    trainer = train.Trainer(
        network, "cross_entropy", train.Adam(learning_rate=0.005), metrics=["accuracy"], seed=1
    )
    trainer.fit(parts.train, validation=parts.validation, epochs=6, progress=False)
    return trainer


@pytest.fixture(scope="module")
def exported(trainer: train.Trainer, parts: data.Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network in a model repository."""
    path = tmp_path_factory.mktemp("repository") / "small" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    provenance = model.Provenance(data_hash=f"sha256:{parts.train.digest()}", created=datetime.now(UTC))
    verify.export(trainer.model, path, provenance=provenance)
    return path


def test_it_learns(trainer: train.Trainer, parts: data.Splits) -> None:
    assert parts.test is not None
    assert trainer.history["loss"][-1] < trainer.history["loss"][0] / 3
    assert float(trainer.evaluate(parts.test)["accuracy"]) > 0.93


def test_the_file_runs_in_a_stock_onnxruntime(
    trainer: train.Trainer, parts: data.Splits, exported: Path
) -> None:
    assert parts.test is not None
    images = parts.test.inputs["image"]
    onnx.checker.check_model(str(exported), full_check=True)
    theirs = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    expected = theirs.run(None, {"input": images})[0]
    np.testing.assert_allclose(trainer.predict(images)["output"], expected, rtol=1e-4, atol=1e-5)


def test_forward_and_training_step_agree_with_onnxruntime(exported: Path, trainer: train.Trainer) -> None:
    verify.compare(exported).raise_if_failed()
    verify.compare_training(trainer.model, optimizer=train.AdamW(), steps=2).raise_if_failed()


def test_served_answers_are_checked_and_equal_local_ones(exported: Path, parts: data.Splits) -> None:
    assert parts.test is not None
    images = parts.test.inputs["image"]
    settings = ServerSettings(
        repository=exported.parents[2],
        listen="127.0.0.1:0",
        cross_check=CrossCheckSettings(policy="every", on_mismatch="fail"),
    )
    with ServerThread(settings) as server, Client(server.address) as client:
        answers = client.predict("small", images)["output"]
        with pytest.raises(InvalidRequestError):
            client.predict("small", images[:, :, :7])
        checks = client.cross_checks("small")[0]
    assert (checks.checks, checks.failed) == (1, 0)
    np.testing.assert_allclose(
        answers, Session(exported).run({"input": images})["output"], rtol=1e-5, atol=1e-6
    )

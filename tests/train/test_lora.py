"""Adapters are trained, the file's own weights are not, and what is exported has them merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train import networks

from onward.engine import Session
from onward.errors import ConfigError
from onward.model import save
from onward.train import Adam, Callback, Checkpoints, LoRA, Pruning, Trainer


class Interrupt(Callback):
    def on_step_end(self, run) -> None:
        if run.step == 7:
            raise KeyboardInterrupt


def trainer(path: Path, **options) -> Trainer:
    save(networks.mlp(dropout=0.2), path)
    options = {"lora": LoRA(rank=2, alpha=4), "optimizer": Adam(0.02), "seed": 1, **options}
    return Trainer(path, **options)


def weight(model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_adapters_learn_and_merge(tmp_path: Path, engine: str) -> None:
    x, y = networks.blobs()
    t = trainer(tmp_path / "m.onnx", engine=engine, metrics=["accuracy"])
    assert t.trainable == [
        *("hidden.weight.lora_a", "hidden.weight.lora_b", "out.weight.lora_a", "out.weight.lora_b")
    ]
    before = t.evaluate(x, y)
    t.fit(x, y, epochs=12, batch_size=10, progress=False)
    after = t.evaluate(x, y)
    assert after["loss"] < before["loss"] * 0.6
    base = networks.mlp(dropout=0.2)
    for name in ("hidden.weight", "hidden.bias", "out.weight", "out.bias"):
        np.testing.assert_array_equal(weight(t.adapted, name), weight(base, name))
    change = weight(t.model, "hidden.weight") - weight(base, "hidden.weight")
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    scores = Session(t.model, engine=engine).run({"x": x})["scores"]
    np.testing.assert_allclose(scores, t.predict(x)["scores"], rtol=1e-4, atol=1e-5)


def test_a_new_head_and_chosen_weights_are_trained_as_they_are(tmp_path: Path) -> None:
    x, y = networks.blobs()
    t = trainer(tmp_path / "m.onnx", head=4)
    assert t.trainable == ["hidden.weight.lora_a", "hidden.weight.lora_b", "out.weight", "out.bias"]
    t.fit(x, y, epochs=1, progress=False)
    assert weight(t.model, "out.weight").shape == (4, 8)
    chosen = trainer(tmp_path / "n.onnx", trainable=["*.bias"])
    assert chosen.trainable[-2:] == ["hidden.bias", "out.bias"]


def test_a_resumed_run_ends_with_the_same_adapters(tmp_path: Path) -> None:
    x, y = networks.blobs()

    def fit(**options) -> Trainer:
        t = trainer(tmp_path / "m.onnx", averaging="ema")
        t.fit(x, y, epochs=3, batch_size=13, progress=False, **options)
        return t

    whole = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[Checkpoints(tmp_path / "run.npz", every=1), Interrupt()])
    second = fit(resume=tmp_path / "run.npz")
    assert {n: a.tobytes() for n, a in second.state.items()} == {
        n: a.tobytes() for n, a in whole.state.items()
    }


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        trainer(tmp_path / "m.onnx", pruning=Pruning())
    with pytest.raises(ConfigError, match="no weight of Gemm or MatMul matches"):
        trainer(tmp_path / "m.onnx", lora=LoRA(targets=("conv*",)))

"""A run that is killed and resumed equals the one that was not, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tests.train import networks

from onward.data import Dataset, Loader
from onward.errors import StorageError, TrainingError
from onward.train import (
    SGD,
    Adam,
    Callback,
    Checkpoints,
    Cosine,
    EarlyStopping,
    ReduceOnPlateau,
    Trainer,
)


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run) -> None:
        if run.step == self.step:
            raise KeyboardInterrupt


def trainer(seed: int = 3, **options) -> Trainer:
    options = {
        "optimizer": Adam(learning_rate=0.01),
        "schedule": Cosine(warmup=3),
        "metrics": ["accuracy"],
        **options,
    }
    return Trainer(networks.mlp(dropout=0.3), seed=seed, **options)


def state_bytes(t: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in t._session.state.items()}


@pytest.mark.parametrize("stop", [1, 4, 9, 13])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": SGD(learning_rate=0.1, momentum=0.9), "accumulate": 3},
        {"schedule": ReduceOnPlateau(patience=0, gamma=0.5)},
    ],
    ids=["adam-cosine", "sgd-accumulate", "plateau"],
)
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, stop: int, options: dict) -> None:
    x, y = networks.blobs()
    validation = networks.blobs(30, seed=2)
    whole = trainer(**options)
    expected = whole.fit((x, y), validation=validation, epochs=3, batch_size=13)
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        trainer(**options).fit(
            (x, y),
            validation=validation,
            epochs=3,
            batch_size=13,
            callbacks=[Checkpoints(path, every=1), Interrupt(stop + 1)],
        )
    second = trainer(**options)
    found = second.fit((x, y), validation=validation, epochs=3, batch_size=13, resume=path)
    assert state_bytes(second) == state_bytes(whole)
    assert found.rows == expected.rows


def test_running_statistics_and_early_stopping_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = Dataset({"image": rng.standard_normal((40, 1, 6, 6)).astype(np.float32)}, np.arange(40) % 3)

    def run(callbacks, **more):
        t = Trainer(networks.norm_net(), optimizer=SGD(learning_rate=0.05), seed=1)
        stopping = EarlyStopping("val_loss", patience=1)
        t.fit(Loader(data, 8, 5), validation=data, epochs=6, callbacks=[stopping, *callbacks], **more)
        return t, stopping

    whole, stopping = run([])
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        run([Checkpoints(path), Interrupt(8)])
    resumed, again = run([], resume=path)
    assert state_bytes(resumed) == state_bytes(whole)
    assert again.best_epoch == stopping.best_epoch


_PROGRAM = """
    import sys
    sys.path.insert(0, {root!r})
    from tests.train import networks
    from onward.train import Adam, Checkpoints, Cosine, Trainer, Callback
    class Say(Callback):
        def on_step_end(self, run):
            print(run.step, flush=True)
    t = Trainer(networks.mlp(dropout=0.3), optimizer=Adam(learning_rate=0.01), schedule=Cosine(warmup=3),
                metrics=["accuracy"], seed=3)
    t.fit(networks.blobs(), epochs=400, batch_size=13, callbacks=[Checkpoints({path!r}, every=1), Say()])
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [7, 23, 40])
def test_kill_9_at_any_moment_leaves_a_checkpoint_that_resumes_to_the_same_bytes(
    tmp_path: Path, after: int
) -> None:
    path = tmp_path / "run.npz"
    program = textwrap.dedent(_PROGRAM).format(root=str(Path(__file__).parents[2]), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= after:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    resumed = trainer()
    reference = trainer()

    class Stop(Callback):
        def on_step_end(self, run) -> None:
            if run.epoch == 13:
                raise KeyboardInterrupt

    for t, resume in ((reference, None), (resumed, path)):
        with pytest.raises(KeyboardInterrupt):
            t.fit(networks.blobs(), epochs=400, batch_size=13, callbacks=[Stop()], resume=resume)
    assert state_bytes(resumed) == state_bytes(reference)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    x, y = networks.blobs()
    path = tmp_path / "run.npz"
    trainer().fit((x, y), epochs=1, batch_size=13, callbacks=[Checkpoints(path)])
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(TrainingError, match="damaged"):
            trainer().fit((x, y), epochs=2, batch_size=13, resume=path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(TrainingError):
        trainer().fit((x, y), epochs=2, batch_size=13, resume=path)
    path.write_bytes(whole)
    with pytest.raises(TrainingError, match="seed"):
        trainer(seed=4).fit((x, y), epochs=2, batch_size=13, resume=path)
    with pytest.raises(TrainingError, match="data"):
        trainer().fit((x + 1, y), epochs=2, batch_size=13, resume=path)
    with pytest.raises(TrainingError, match="batch size"):
        trainer().fit((x, y), epochs=2, batch_size=12, resume=path)
    with pytest.raises(StorageError):
        trainer().fit((x, y), epochs=2, batch_size=13, resume=tmp_path / "none.npz")


def test_a_failing_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = networks.blobs()
    path = tmp_path / "run.npz"
    trainer().fit((x, y), epochs=1, batch_size=13, callbacks=[Checkpoints(path)])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        trainer().fit((x, y), epochs=2, batch_size=13, callbacks=[Checkpoints(path)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]

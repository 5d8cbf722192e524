"""Kill −9 in the middle of saving: the checkpoint is the one before, whole, and resumes to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.train import networks

from onward.train import Adam, Checkpoints, Trainer, read_checkpoint

_PROGRAM = """
    import io, os, signal, sys
    sys.path.insert(0, {root!r})
    from onward.train import Adam, Checkpoints, Trainer
    from tests.train import networks

    saves = 0
    moment = {moment!r}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(real, name):
        def call(*args, **more):
            global saves
            if name == "open" and str(args[0]).endswith(".tmp"):
                saves += 1
            if saves == 4 and name == moment:
                die()
            return real(*args, **more)
        return call

    write = io.FileIO.write
    class Half(io.FileIO):
        def write(self, data):
            if saves == 4 and moment == "write":
                super().write(bytes(data)[: len(data) // 2])
                die()
            return super().write(data)

    io.FileIO = Half
    for name in ("open", "fsync", "replace"):
        setattr(os, name, watched(getattr(os, name), name))
    t = Trainer(networks.mlp(dropout=0.3), optimizer=Adam(learning_rate=0.01), seed=3)
    t.fit(networks.blobs(), epochs=3, batch_size=13, callbacks=[Checkpoints({path!r}, every=1)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_save_that_is_killed_leaves_the_save_before(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "run.npz"
    root = Path(__file__).parents[2]
    program = textwrap.dedent(_PROGRAM).format(root=str(root), path=str(path), moment=moment)
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert read_checkpoint(path).meta["step"] == 3

    def trainer() -> Trainer:
        return Trainer(networks.mlp(dropout=0.3), optimizer=Adam(learning_rate=0.01), seed=3)

    whole, resumed = trainer(), trainer()
    whole.fit(networks.blobs(), epochs=3, batch_size=13)
    resumed.fit(
        networks.blobs(), epochs=3, batch_size=13, resume=path, callbacks=[Checkpoints(path, every=1)]
    )
    for name, array in whole.weights().items():
        assert array.tobytes() == resumed.weights()[name].tobytes(), name

"""`onward train` on a Ray cluster: Ray Train reserves the nodes, MPICH's mpiexec connects the ranks.

    pip install "onward[mpi]" "ray[train]" mpich
    python examples/ray_train.py --workers 2 --cpus 1 --storage runs lenet5 --data digits --epochs 3

What stands behind the options above is what `onward train` takes; files are such as all nodes see. mpiexec's
launcher `manual` says what has to be started on each node, where others would use ssh: each worker starts its
own. A worker that dies ends all ranks; Ray starts them again, and they go on where `--checkpoint FILE
--resume auto` are given. The model is in the checkpoint that Ray keeps in its storage.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import ray.train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_ASKED = "HYDRA_LAUNCH:"
_ALL_ASKED = "HYDRA_LAUNCH_END"


def mpich(program: str) -> str:
    """A program of MPICH, beside this Python's or in PATH."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise SystemExit(f"{program} is missing: pip install mpich")
    return found


class Launcher:
    """mpiexec on the first worker's node; what ranks print comes through it."""

    def __init__(self, workers: int, command: list[str]) -> None:
        hosts = ",".join(f"worker{number}" for number in range(workers))
        manual = ["-launcher", "manual", "-hosts", hosts, "-n", str(workers)]
        self.process = subprocess.Popen(
            [mpich("mpiexec.hydra"), *manual, *command], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.asked: list[list[str]] = []
        for line in self.process.stdout:
            if line.startswith(_ALL_ASKED):
                break
            if line.startswith(_ASKED):
                self.asked.append(shlex.split(line.removeprefix(_ASKED)))
        self.figures: dict[str, float] = {}
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            try:
                event = json.loads(line)
            except ValueError:
                sys.stdout.write(line)
                continue
            if event["event"] == "epoch_ended":
                self.figures = event["row"]
                sys.stdout.write(line)

    def end(self) -> int:
        """The exit code of the ranks."""
        self._reader.join()
        return self.process.wait()


def rank(config: dict[str, Any]) -> None:
    """One worker: starts what connects its rank with the others; the first starts mpiexec before."""
    context = ray.train.get_context()
    workers, number = context.get_world_size(), context.get_world_rank()
    with tempfile.TemporaryDirectory() as folder:
        launcher = None
        if number == 0:  # mpiexec's first rank is on this worker's node, and writes the model
            output = ["--output", str(Path(folder, "model.onnx"))]
            train = [sys.executable, "-m", "onward", "train", *config["arguments"], *output, "--json"]
            launcher = Launcher(workers, train)
        # the proxies differ in their number alone, and it stands last
        program, *options, _ = broadcast_from_rank_zero(None if launcher is None else launcher.asked[0])
        code = subprocess.run([mpich(Path(program).name), *options, str(number)]).returncode
        if launcher is not None:
            code = launcher.end()
        code, figures = broadcast_from_rank_zero(None if launcher is None else (code, launcher.figures))
        if code:
            raise RuntimeError(f"the ranks ended with code {code}")
        kept = None if launcher is None else ray.train.Checkpoint.from_directory(folder)
        ray.train.report(figures, checkpoint=kept)


def main() -> int:
    """Train, and print the last epoch's figures and where the model is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2, help="ranks, one a worker")
    parser.add_argument("--cpus", type=int, default=1, help="cores and threads of each")
    parser.add_argument("--storage", help="where Ray keeps results: a folder or URL that all nodes see")
    options, arguments = parser.parse_known_args()
    storage = None
    if options.storage is not None:
        storage = options.storage if "://" in options.storage else str(Path(options.storage).absolute())
    found = DataParallelTrainer(
        rank,
        train_loop_config={"arguments": [*arguments, "--threads", str(options.cpus)]},
        scaling_config=ray.train.ScalingConfig(
            num_workers=options.workers, resources_per_worker={"CPU": options.cpus}
        ),
        run_config=ray.train.RunConfig(
            storage_path=storage, failure_config=ray.train.FailureConfig(max_failures=3)
        ),
    ).fit()
    print(
        json.dumps(
            {"ranks": options.workers, "model": f"{found.checkpoint.path}/model.onnx", **found.metrics}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

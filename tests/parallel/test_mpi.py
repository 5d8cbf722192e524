"""Training on MPI ranks, by the command that a person types."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from tests.parallel.launch import command, environment, needs_mpi, start

from onward.cli import main
from onward.model import load
from onward.train.checkpoint import read_checkpoint

pytestmark = needs_mpi

CLI = "from onward.cli import main; import sys; main(sys.argv[1:])"
Begin: TypeAlias = Callable[..., "subprocess.Popen[str]"]
TRAIN = ("train", "mlp", "--data", "digits", "--epochs", "2", "--batch-size", "50", "--threads", "1")


def weights(path: Path) -> dict[str, np.ndarray]:
    initializers = load(path).graph.initializers
    return {n: v.const_value.numpy() for n, v in initializers.items() if v.const_value is not None}


def train(cwd: Path, ranks: int, *options: str) -> subprocess.CompletedProcess[str]:
    return start(ranks, "-c", CLI, *TRAIN, *options, cwd=cwd)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    done = train(folder, 2, "--output", "a.onnx", "--checkpoint", "a.ckpt", "--per-rank")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_two_ranks_train_as_one_does_and_tell_it_once(two: tuple[Path, str], tmp_path: Path) -> None:
    folder, told = two
    assert told.count("epoch 2/2") == told.count("written, takes") == 1
    assert "2 ranks: computing" in told
    for rank in range(2):
        assert told.count(f"rank {rank}: {socket.gethostname()}, process ") == 1
    assert "\x1b" not in told  # ranks have a terminal that is none
    with pytest.raises(SystemExit) as ended:
        main([*TRAIN, "--output", str(tmp_path / "one.onnx")])
    assert ended.value.code == 0
    found, wanted = weights(folder / "a.onnx"), weights(tmp_path / "one.onnx")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_two_runs_of_two_ranks_write_the_same_bytes(two: tuple[Path, str]) -> None:
    folder, _ = two
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    done = train(folder, 2, "--output", "b.onnx", "--checkpoint", "b.ckpt")
    assert done.returncode == 0, done.stderr
    assert (folder / "a.ckpt").read_bytes() == (folder / "b.ckpt").read_bytes()
    found, wanted = weights(folder / "b.onnx"), weights(folder / "a.onnx")
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--exchange", "bfloat16"), ("--shard",)], ids=["bfloat16", "shard"])
def test_sums_in_pieces_write_the_same_bytes(
    two: tuple[Path, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """With float32 and two ranks, those of an all-reduce too: a + b is b + a."""
    folder, told = two
    for name in ("a.ckpt", "b.ckpt"):
        done = train(tmp_path, 2, "--output", "m.onnx", "--overwrite", "--checkpoint", name, *options)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    same = (tmp_path / "a.ckpt").read_bytes() == (folder / "a.ckpt").read_bytes()
    assert same == (options == ("--shard",))
    sent, before = (float(re.findall(r"([0-9.]+) MB sent", text)[0]) for text in (done.stdout, told))
    assert sent == pytest.approx(before if same else before / 2, rel=0.05)
    state, whole = (float(re.findall(r"state ([0-9.]+)", text)[0]) for text in (done.stdout, told))
    assert state == pytest.approx(whole / 2 if same else whole, abs=0.01)


WATCHED = """
import atexit, collections, os, sys
opened = collections.Counter()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "/watched" in arguments[0]:
        opened[os.path.basename(arguments[0])] += 1
sys.addaudithook(watch)
def told():
    with open(f"opened.{os.environ['OMPI_COMM_WORLD_RANK']}", "w") as file:
        file.write("\\n".join(sorted(opened)))
atexit.register(told)
"""


def opened(cwd: Path, *options: str) -> list[set[str]]:
    """The files of the data that each of two ranks opened."""
    files = ("--output", "m.onnx", "--overwrite")
    done = start(2, "-c", WATCHED + CLI, *TRAIN, *files, *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [set((cwd / f"opened.{rank}").read_text().split()) for rank in range(2)]


@pytest.mark.slow
def test_each_rank_opens_its_part_of_the_files(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "watched" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "watched" / label / f"{label}{number}.png")
    images = ("--data", f"images:{tmp_path}/watched", "--image-size", "6", "--batch-size", "8")
    first, second = opened(tmp_path, *images)
    assert len(first) == len(second) == 20
    assert not first & second
    table = tmp_path / "watched.csv"
    table.write_text("x,y,label\n" + "".join(f"{i},{i * i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    assert opened(tmp_path, "--data", str(table), "--batch-size", "8") == [{"watched.csv"}, set()]


@pytest.mark.slow
def test_threads_move_exchanges_on_while_nobody_waits(tmp_path: Path) -> None:
    done = start(2, "-m", "tests.parallel.overlap", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["overlapped"]


@pytest.mark.slow
def test_a_rank_that_waits_leaves_the_core_to_the_one_that_computes(tmp_path: Path) -> None:
    """On one core, of which the library does not know: it sees two slots for two ranks."""
    program = """
        import os, time
        import numpy as np
        from onward.parallel import world

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        ranks, block = world(), np.zeros(1)
        for meet in (
            ranks.barrier,
            lambda: ranks.all_reduce_wait(ranks.all_reduce_start(block)),
            lambda: ranks.broadcast(block, 1),
        ):
            ranks.barrier()
            before = time.process_time()
            while ranks.rank == 1 and time.process_time() < before + 0.5:
                pass
            meet()
            if ranks.rank == 0:
                print(time.process_time() - before)
    """
    done = start(2, "-c", textwrap.dedent(program), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spent = [float(line) for line in done.stdout.split()]
    assert len(spent) == 3
    assert max(spent) < 0.25, spent


@pytest.mark.slow
def test_an_error_is_told_once_and_ends_all_ranks(tmp_path: Path) -> None:
    done = train(tmp_path, 2, "--data", "csv:none.csv", "--target", "y")
    assert done.returncode == 2
    assert done.stderr.count("none.csv") == 1


@pytest.mark.slow
def test_ranks_on_unlike_processors_train_together(tmp_path: Path) -> None:
    """Vectors of 4 and of the machine's width sum a norm in another order."""
    unlike = (
        "import os; rank = os.environ['OMPI_COMM_WORLD_RANK']; os.environ['ONWARD_LANES'] = '4' * int(rank); "
    )
    done = start(2, "-c", unlike + CLI, *TRAIN, "--clip-norm", "0.5", "--output", "m.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout


@pytest.mark.slow
def test_wrong_options_are_told_once(tmp_path: Path) -> None:
    done = train(tmp_path, 2, "--no-such-option")
    assert done.returncode == 2
    assert done.stderr.count("No such option: --no-such-option") == 1


@pytest.mark.slow
def test_a_search_for_the_learning_rate_is_shown_once(tmp_path: Path) -> None:
    done = train(tmp_path, 2, "--find-lr", "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if "suggestion" in line]
    assert len(found) == 1
    assert 1e-5 < found[0]["suggestion"] < 1


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_others(tmp_path: Path) -> None:
    program = """
        import numpy as np
        from onward.nn import zoo
        from onward.parallel import world
        from onward.train import Trainer

        rank = world().rank
        trainer = Trainer(zoo.mlp(input_shape=(4,)), "cross_entropy", parallel="mpi", threads=1)
        if rank == 1:
            raise ValueError("the disk of this rank is on fire")
        trainer.fit((np.zeros((8, 4), np.float32), np.zeros(8, int)), batch_size=4, progress=False)
    """
    done = start(2, "-c", textwrap.dedent(program), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("ValueError: the disk of this rank is on fire") == 1


@pytest.mark.slow
def test_a_rank_that_ends_its_program_ends_the_others(tmp_path: Path) -> None:
    """MPI waits for all ranks at the end of a program, so it would wait for ever."""
    program = """
        import sys
        import numpy as np
        from onward.nn import zoo
        from onward.parallel import MPICommunicator
        from onward.train import Callback, Trainer

        class Leave(Callback):
            def on_step_end(self, run):
                if run.step == 2 and ranks.rank == 1:
                    sys.exit(0)

        ranks = MPICommunicator()
        trainer = Trainer(zoo.mlp(input_shape=(4,)), "cross_entropy", parallel=ranks, threads=1)
        data = np.zeros((80, 4), np.float32), np.zeros(80, int)
        trainer.fit(data, batch_size=4, progress=False, callbacks=[Leave()])
    """
    done = start(2, "-c", textwrap.dedent(program), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: rank 0: rank 1 has ended its program, while others wait for it") == 1


def _ranks(launcher: int) -> list[int]:
    """Process ids of the ranks below an mpirun."""
    found, pending = [], [launcher]
    while pending:
        parent = pending.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pending += map(int, task.read_text().split())
        if parent != launcher and b"-c\0from onward" in Path(f"/proc/{parent}/cmdline").read_bytes():
            found.append(parent)
    return found


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts two ranks, which are in the middle of a long run when it returns: a checkpoint is there."""
    jobs: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            command(2, "-c", CLI, *TRAIN, "--epochs", "100000", "--checkpoint", "run.ckpt", *options),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        jobs.append(job)
        end = time.monotonic() + 90
        while not (tmp_path / "run.ckpt").exists():
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        return job

    yield begin
    for job in jobs:
        for process in [*_ranks(job.pid), job.pid] if job.poll() is None else []:
            os.kill(process, signal.SIGKILL)
        job.communicate()


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_one_rank_goes_on(tmp_path: Path, begin: Begin) -> None:
    job = begin()
    ranks = _ranks(job.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    before = time.monotonic()
    job.communicate(timeout=30)
    assert job.returncode != 0
    while any(map(_lives, ranks)):
        assert time.monotonic() - before < 10
        time.sleep(0.05)
    done = int(read_checkpoint(tmp_path / "run.ckpt").meta["epoch"]) - 1
    files = ("--output", str(tmp_path / "m.onnx"), "--csv-log", str(tmp_path / "log.csv"))
    with pytest.raises(SystemExit) as ended:
        main([*TRAIN, "--epochs", str(done + 1), "--resume", str(tmp_path / "run.ckpt"), *files])
    assert ended.value.code == 0
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert len(rows) == done + 2
    assert float(rows[-1].split(",")[rows[0].split(",").index("val_accuracy")]) > 0.8


@pytest.mark.slow
def test_a_rank_that_is_left_alone_ends_when_it_is_told_to(tmp_path: Path, begin: Begin) -> None:
    """Slurm tells the others of a killed rank to stop; here the other one stands still."""
    job = begin()
    first, second = _ranks(job.pid)
    os.kill(second, signal.SIGSTOP)
    time.sleep(1)
    before = time.monotonic()
    os.kill(first, signal.SIGTERM)
    _, told = job.communicate(timeout=60)
    assert time.monotonic() - before < 30
    assert job.returncode == 1
    assert "told to stop, while other ranks have not come for" in told
    assert read_checkpoint(tmp_path / "run.ckpt").meta["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [False, True], ids=["rank", "launcher"])
def test_a_signal_to_a_rank_or_its_launcher_saves_where_all_ranks_are(
    tmp_path: Path, begin: Begin, launcher: bool
) -> None:
    """mpirun hands SIGUSR1 on, and leaves ranks their time then."""
    job = begin("--json")
    os.kill(*((job.pid, signal.SIGUSR1) if launcher else (_ranks(job.pid)[1], signal.SIGTERM)))
    out, told = job.communicate(timeout=60)
    *_, timed, last = map(json.loads, out.strip().splitlines())
    assert [rank.keys() >= {"steps", "waiting", "exchanged", "process"} for rank in timed["ranks"]] == [
        True
    ] * 2
    assert last["event"] == "finished", told
    assert last["status"] == "cancelled"
    assert job.returncode == 130
    meta = read_checkpoint(tmp_path / "run.ckpt").meta
    assert meta["step"] > 0
    assert meta["stopped"] == "", "a run that goes on from here would end at once"


@pytest.mark.slow
def test_nan_on_one_rank_ends_all_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    program = """
        import numpy as np
        from onward.data import Dataset, Loader
        from onward.nn import zoo
        from onward.parallel import world
        from onward.train import Checkpoints, Trainer

        x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
        x[11] = 3e38  # the last batch's last sample: rank 1 has it
        trainer = Trainer(zoo.mlp(input_shape=(4,)), "cross_entropy", parallel="mpi", threads=1)
        loader = Loader(Dataset({"input": x}, np.arange(12) % 3, task="classification"), 4, shuffle=False)
        trainer.fit(loader, callbacks=[Checkpoints("run.ckpt", every=1)], progress=False)
    """
    done = start(2, "-c", textwrap.dedent(program), cwd=tmp_path)
    assert done.returncode != 0
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("onward.errors.TrainingError")]
    assert re.search(r"the loss became nan in epoch 1, step 3; rank 1, step 3: node '.*', operator ", told)
    assert read_checkpoint(tmp_path / "run.ckpt").meta["step"] == 2


@pytest.mark.slow
def test_ranks_started_with_other_options_are_named(tmp_path: Path) -> None:
    first = [*command(1, "-c", CLI, *TRAIN)]
    second = ["-n", "1", *first[first.index("1") + 1 :], "--data", "iris"]
    done = subprocess.run(
        [*first, ":", *second], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=120
    )
    assert done.returncode == 2
    assert (
        done.stderr.count("error: ranks disagree on the option data.spec: rank 0 has 'digits', rank 1") == 1
    )


@pytest.mark.slow
def test_a_missing_mpi_library_is_told_once(tmp_path: Path) -> None:
    without = "import os; os.environ['MPI4PY_LIBMPI'] = '/none.so'; " + CLI
    done = start(2, "-c", without, *TRAIN, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: mpi4py finds no MPI library (cannot load MPI library") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_which_the_library_knows_nothing_are_told_once(tmp_path: Path, rank: int) -> None:
    """As of `srun` with another --mpi than the library's."""
    program = f"""
        import os
        from mpi4py import MPI

        for name in [name for name in os.environ if name.startswith("OMPI_COMM_WORLD")]:
            del os.environ[name]
        os.environ.update(SLURM_PROCID="{rank}", SLURM_STEP_NUM_TASKS="2")
    """
    done = start(1, "-c", textwrap.dedent(program) + CLI, *TRAIN, "--output", "m.onnx", cwd=tmp_path)
    assert done.returncode == 2
    told = "was started as rank 0 of 2, but mpi4py's MPI library knows of one rank only: srun offers"
    assert done.stderr.count(told) == 1 - rank
    assert done.stderr.count("--mpi=pmix for Open MPI") == 1 - rank


@pytest.mark.slow
def test_a_missing_mpi4py_is_told_once(tmp_path: Path) -> None:
    without = "import sys; sys.modules['mpi4py'] = None; " + CLI
    done = start(2, "-c", without, *TRAIN, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: training on several ranks needs mpi4py") == 1

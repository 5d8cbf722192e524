"""Plans that outlive the process: the same bits without lowering; damage, races and limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.compile.test_plans_zoo import make
from tests.compile.test_spec_file import odd_model

from onward.compile import planning
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import host_target
from onward.compile.disk import DiskCache
from onward.engine import compiled
from onward.engine.compiled import CompiledEngine
from onward.engine.plan_cache import PlanCache
from onward.graph import Array, Builder


class Process:
    """The caches that an engine finds: `restart` forgets what is in memory, as a new process does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.lowered = 0
        self.limit = 1 << 24
        self._plan_model = planning.plan_model
        self.restart()
        monkeypatch.setattr(compiled, "default_plans", lambda: self.plans)
        monkeypatch.setattr(compiled, "default_jit", lambda: self.jit)
        monkeypatch.setattr(planning, "plan_model", self._count)

    def restart(self) -> None:
        self.plans = PlanCache(DiskCache(self.folder / "plans", self.limit))
        self.jit = Jit(host_target(), DiskCache(self.folder / "kernels"))

    def _count(self, *args: object) -> object:
        self.lowered += 1
        return self._plan_model(*args)  # type: ignore[arg-type]

    def entries(self) -> list[Path]:
        return sorted((self.folder / "plans").glob("*/*"))


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(tmp_path, monkeypatch)


def same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def scaled(weight: float = 1.0, slope: float = 2.0) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="scaled")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    w = g.initializer("w", np.full((4, 8), weight, np.float32))
    g.output(g.Mul(g.MatMul(x, w), g.initializer("slope", np.float32([slope]))), "y")
    return ir.Model(graph, ir_version=10)


ONES = {"x": np.ones((3, 4), np.float32)}


def result(model: ir.Model, threads: int = 1) -> float:
    return float(CompiledEngine(model, threads=threads).run(ONES)["y"][0, 0])


@pytest.mark.parametrize("name", ["mlp", "resnet20", "lstm_classifier", "transformer_encoder"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_from_the_disk_gives_the_same_bits_and_lowers_nothing(
    name: str, threads: int, process: Process
) -> None:
    zoo = make(name, 3, steps=3)
    states, results = [], []
    for _ in range(2):
        engine = CompiledEngine(zoo.step.model, zoo.step.bindings, threads)
        results.append([engine.run(feed) for feed in zoo.feeds])
        states.append({k: engine.fixed[k].copy() for k in zoo.step.bindings})
        once = process.lowered
        process.restart()
    assert process.lowered == once <= threads
    assert process.jit.compiled == 0
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    assert same(*states)


def test_numpy_kernels_and_constants_survive(process: Process) -> None:
    model, inputs = odd_model()
    first = CompiledEngine(model, threads=2).run(inputs)
    lowered = process.lowered
    process.restart()
    assert same(CompiledEngine(model, threads=2).run(inputs), first)
    assert process.lowered == lowered


BODIES = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[3, 4] x, int64 trips, bool branch) => (float[3, 4] y, float[3, 4] z) {
   go = Constant <value = bool {1}> ()
   step = Constant <value = float {0.5}> ()
   y = Loop (trips, go, x) <body = inner (int64 i, bool c, float[3, 4] now) => (bool d, float[3, 4] next) {
      d = Identity (c)
      grown = Add (now, step)
      next = If (branch) <
         then_branch = doubled () => (float[3, 4] a) { a = Add (grown, grown) },
         else_branch = shifted () => (float[3, 4] b) { b = Sub (grown, x) }
      >
   }>
   z = Scan <body = squares (float[4] row) => (float[4] s) { s = Mul (row, row) }, num_scan_inputs = 1> (y)
}
"""


def test_bodies_survive(process: Process) -> None:
    model = ir.from_proto(onnx.parser.parse_model(BODIES))
    inputs = {"x": ONES["x"], "trips": np.array(3), "branch": np.array(True)}
    other = {**inputs, "branch": np.array(False), "trips": np.array(2)}

    def results() -> list[dict[str, Array]]:
        engine = CompiledEngine(model, threads=1)
        assert engine.plan({n: a.shape for n, a in inputs.items()}) is not None
        return [engine.run(inputs), engine.run(other)]

    first = results()
    np.testing.assert_allclose(first[0]["y"], ((1.5 * 2 + 0.5) * 2 + 0.5) * 2)
    np.testing.assert_allclose(first[0]["z"], first[0]["y"] ** 2)
    lowered = process.lowered
    assert lowered > 0
    process.restart()
    assert all(same(a, b) for a, b in zip(results(), first, strict=True))
    assert process.lowered == lowered


def test_sessions_of_one_process_share_plans_without_a_disk(process: Process) -> None:
    process.plans = PlanCache()
    assert [result(scaled()), result(scaled())] == [8.0, 8.0]
    assert process.lowered == 1


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    """A whole entry, but another plan's."""
    result(scaled(slope=7.0))
    (source,) = set(path.parents[1].glob("*/*")) - {path}
    path.write_bytes(source.read_bytes())


def _older(path: Path) -> None:
    """Whole by its checksum, but of a format that is not read any more."""
    cache = DiskCache(path.parents[1])
    cache.put(path.parent.name + path.name, b"a plan of another time")


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, _other, _older])
def test_an_entry_that_cannot_be_used_is_replaced(damage: Callable[[Path], None], process: Process) -> None:
    assert result(scaled()) == 8.0
    (entry,) = process.entries()
    whole = entry.read_bytes()
    damage(entry)
    before = process.lowered
    process.restart()
    assert result(scaled()) == 8.0
    assert process.lowered == before + 1
    assert entry.read_bytes() == whole


def test_kernels_that_were_crowded_out_are_built_again(process: Process) -> None:
    assert result(scaled()) == 8.0
    shutil.rmtree(process.folder / "kernels")
    process.restart()
    assert result(scaled()) == 8.0
    assert process.jit.compiled > 0


def test_a_kernel_under_the_name_of_another_is_built_again(process: Process) -> None:
    assert [result(scaled()), result(scaled(slope=7.0))] == [8.0, 28.0]
    first, second = sorted((process.folder / "kernels").glob("*/*"))
    first.write_bytes(second.read_bytes())
    process.restart()
    assert [result(scaled()), result(scaled(slope=7.0))] == [8.0, 28.0]
    assert process.jit.compiled == 1


def test_weights_may_differ_between_processes(process: Process) -> None:
    assert result(scaled()) == 8.0
    process.restart()
    assert result(scaled(weight=3.0)) == 24.0
    assert process.lowered == 1
    assert result(scaled(slope=5.0)) == 20.0
    assert process.lowered == 2


def test_swapped_weights_have_a_plan_of_their_own(process: Process) -> None:
    for _ in range(2):
        engine = CompiledEngine(scaled(), threads=1)
        assert engine.run(ONES)["y"][0, 0] == 8.0
        engine.load({"slope": np.float32([10.0])})
        assert engine.run(ONES)["y"][0, 0] == 40.0
        engine.load({"slope": np.float32([1.0]), "w": np.full((4, 8), 2.0, np.float32)})
        assert engine.run(ONES)["y"][0, 0] == 8.0
        process.restart()
    assert process.lowered == 3


def test_each_number_of_threads_and_shape_has_an_entry(process: Process) -> None:
    for threads in (1, 2, 3):
        assert result(scaled(), threads) == 8.0
    CompiledEngine(scaled(), threads=1).run({"x": np.ones((5, 4), np.float32)})
    assert len(process.entries()) == 4


def test_the_folder_is_bounded(process: Process) -> None:
    process.limit = 30_000
    for n in range(1, 40):
        process.restart()
        CompiledEngine(scaled(), threads=1).run({"x": np.ones((n, 4), np.float32)})
    assert 0 < sum(p.stat().st_size for p in process.entries()) <= process.limit


def test_a_folder_that_cannot_be_used_costs_planning_only(process: Process, tmp_path: Path) -> None:
    process.folder = tmp_path / "file"
    process.folder.write_text("not a folder")
    for _ in range(2):
        process.restart()
        assert result(scaled()) == 8.0
    assert process.lowered == 2


def test_processes_may_plan_at_once_and_a_later_one_finds_it(tmp_path: Path) -> None:
    script = (
        "import numpy as np, onnx_ir as ir\n"
        "from onward.compile import planning\n"
        "from onward.engine import compiled\n"
        "from onward.graph import Builder\n"
        "graph = ir.Graph([], [], nodes=[], opset_imports={'': 21}, name='large')\n"
        "g = Builder(graph)\n"
        "x = g.input('x', ir.DataType.FLOAT, ('N', 256))\n"
        "w = g.initializer('w', np.random.default_rng(0).standard_normal((256, 300)).astype(np.float32))\n"
        "g.output(g.MatMul(x, w), 'y')\n"
        "lowered, plan_model = [], planning.plan_model\n"
        "planning.plan_model = lambda *a: (lowered.append(1), plan_model(*a))[1]\n"
        "engine = compiled.CompiledEngine(ir.Model(graph, ir_version=10), threads=2)\n"
        "feed = {'x': np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)}\n"
        "import hashlib; print(len(lowered), hashlib.sha256(engine.run(feed)['y']).hexdigest())\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "ONWARD_CACHE_DIR": str(tmp_path),
    }

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    outputs = [child.communicate(timeout=120)[0].split() for child in [start() for _ in range(3)]]
    late, digest = start().communicate(timeout=120)[0].split()
    assert late == "0"
    assert {found for _, found in outputs} == {digest}
    assert not list(tmp_path.glob("*/*/.tmp-*"))

"""An operator of one's own, in a file of one's own: runs compiled, trains, is exported, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from onward.errors import ConfigError
from onward.graph import import_file

_FILE = '''
import numpy as np
from onward.graph import Op, op


@op("Squared", domain="my.own", since=1)
class Squared(Op):
    """y = factor · x · |x|."""

    factor: float = 1.0

    def infer(self, x):
        return [(x.dtype, x.shape)]

    def kernel(self, x):
        return x.dtype.type(self.factor) * x * np.abs(x)

    def gradient(self, g, dy, y, x):
        return (g.Mul(dy, g.Mul(g.Abs(x), 2 * self.factor)),)

    {expand}

    @staticmethod
    def loop(thread, threads, y, x, factor):
        for i in range(len(x) * thread // threads, len(x) * (thread + 1) // threads):
            for j in range(x.shape[1]):
                y[i, j] = factor * x[i, j] * abs(x[i, j])
'''

_BODY = "def expand(self, g, x): return g.Mul(g.Mul(x, g.Abs(x)), self.factor)"

_SCRIPT = """
import numpy as np, onnx, onward
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.train import Trainer

model = onward.load("model.onnx")
x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
engine = CompiledEngine(model, threads=2)
want = Interpreter(model.graph).run({"x": x})["y"]
np.testing.assert_allclose(engine.run({"x": x})["y"], want, rtol=1e-5)
print([row.kernel.split()[0] for row in engine.plan({"x": x.shape}).rows if "Squared" in row.operators])
report = onward.verify.compare_training(model, steps=2)
print(report.verdict)
onward.export(model, "exported.onnx")
print(sorted((f.domain, f.name) for f in onnx.load("exported.onnx").functions))
print([n.op_type for n in onward.load("exported.onnx").graph])
import onnxruntime
session = onnxruntime.InferenceSession("exported.onnx", providers=["CPUExecutionProvider"])
np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5)
"""


def _model(folder: Path, factors: tuple[float, ...]) -> None:
    w = onnx.helper.make_tensor("w", 1, [4, 3], [0.1 * i - 0.5 for i in range(12)])
    names = ["a", *(f"b{i}" for i in range(len(factors) - 1)), "y"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    nodes += [
        helper.make_node("Squared", [one], [other], domain="my.own", factor=factor)
        for one, other, factor in zip(names[:-1], names[1:], factors, strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
        [w],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), folder / "model.onnx")


def _run(folder: Path, expand: str = _BODY) -> subprocess.CompletedProcess[str]:
    (folder / "my_ops.py").write_text(_FILE.format(expand=expand), encoding="utf-8")
    environment = {**os.environ, "ONWARD_IMPORT": str(folder / "my_ops.py")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_runs_trains_and_is_exported_as_a_function(tmp_path: Path) -> None:
    _model(tmp_path, (0.5,))
    done = _run(tmp_path)
    assert done.stdout.splitlines() == [
        "['loop']",
        "agree",
        "[('my.own', 'Squared')]",
        "['MatMul', 'Squared']",
    ], done.stderr


@pytest.mark.slow
def test_nodes_that_differ_are_written_out(tmp_path: Path) -> None:
    _model(tmp_path, (0.5, 2.0))
    done = _run(tmp_path)
    assert done.stdout.splitlines()[2:] == ["[]", "['MatMul', 'Abs', 'Mul', 'Mul', 'Abs', 'Mul', 'Mul']"], (
        done
    )


@pytest.mark.slow
def test_without_a_body_it_is_not_exported(tmp_path: Path) -> None:
    _model(tmp_path, (0.5,))
    done = _run(tmp_path, expand="")
    assert done.stdout.splitlines() == ["['loop']"]
    assert "operator Squared of domain 'my.own': no other runtime can execute it" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def (", "SyntaxError"),
        ("import onward.graph as o\n@o.op('A', domain='b.c', since=1)\nclass A(o.Op): pass", "has no kernel"),
    ],
)
def test_bad_files_give_one_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"bad.py: .*{message}"):
        import_file(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.py: no such file"):
        import_file(tmp_path / "none.py")

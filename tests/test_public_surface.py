"""What the packages export is what docs/api.md lists; importing is light."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "numba",
    "llvmlite",
    "sklearn",
    "PIL",
    "grpc",
    "tensorboard",
)
WITNESSES = ("onnxruntime", "sklearn", "PIL", "grpc", "tensorboard", "torch")


def _documented() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {
        section.split("\n", 1)[0].strip(): re.findall(r"^\| `(\w+)` \| \S", section, flags=re.MULTILINE)
        for section in sections
    }


DOCUMENTED = _documented()


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_path()
    )
    return set(done.stdout.split())


def _path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


@pytest.mark.parametrize("package", DOCUMENTED)
def test_all_is_what_the_docs_list(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(DOCUMENTED[package])
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_page_is_what_the_script_writes() -> None:
    command = [sys.executable, ROOT / "scripts" / "api.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_path())
    assert done.returncode == 0, done.stderr


def test_every_public_package_is_documented() -> None:
    import onward

    packages = {
        "onward",
        *(f"onward.{name}" for name in onward.__all__ if name.islower() and name != "compare"),
    }
    modules = {p for p in packages if importlib.util.find_spec(p) is not None}
    assert modules <= set(DOCUMENTED)


def test_unknown_name_is_an_attribute_error() -> None:
    import onward

    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = onward.nothing_of_the_kind


def test_names_are_the_same_objects_as_in_their_packages() -> None:
    import onward
    from onward.train.trainer import Trainer

    assert onward.Trainer is Trainer
    assert onward.train.Trainer is Trainer


def test_importing_onward_loads_no_library() -> None:
    assert _loaded_after("import onward").isdisjoint(HEAVY)


def test_training_loads_no_witness() -> None:
    assert _loaded_after("from onward import train, nn, data, model, engine").isdisjoint(WITNESSES)


def test_training_verifying_and_serving_load_no_algebra() -> None:
    """onnx_ir's symbolic arithmetic is loaded by whoever calculates with dimensions."""
    statement = (
        "from onward import train, nn, verify, runs, engine\nimport numpy as np\n"
        "network = nn.Sequential([nn.Dense(2)], input_shape=(3,), name='small')\n"
        "trainer = train.Trainer(network, 'mse', 'sgd')\n"
        "trainer.fit(np.ones((4, 3), 'f4'), np.ones((4, 2), 'f4'), epochs=1)\n"
        "engine.Session(trainer.model).run({'input': np.ones((4, 3), 'f4')})"
    )
    assert _loaded_after(statement).isdisjoint({"sympy", "mpmath"})


def test_symbolic_dimensions_calculate_all_the_same() -> None:
    statement = (
        "from onward import nn\nimport onnx_ir as ir, sys\nassert 'sympy' not in sys.modules\n"
        "assert (ir.SymbolicDim('N') * 2 + 1).value == '2*N + 1'\n"
        "import sympy\nassert ir._core.sympy.Symbol is sympy.Symbol\n"
        "assert type(ir.__loader__).__name__ == 'SourceFileLoader'"
    )
    assert "sympy" in _loaded_after(statement)


def test_a_library_loaded_before_onward_stays_as_it_is() -> None:
    assert "sympy" in _loaded_after("import onnx_ir\nfrom onward import nn")


def test_help_loads_neither_engine_nor_witness() -> None:
    statement = (
        "import contextlib, io\nfrom onward.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    )
    assert _loaded_after(statement).isdisjoint(HEAVY)

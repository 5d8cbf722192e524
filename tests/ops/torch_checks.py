"""Gradients beside torch autograd, which runs in the interpreter that ONWARD_TORCH_PYTHON names."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.ops.gradient_checks import in_float64
from tests.ops.harness import Case, run

from onward.graph import Array

SCRIPT = Path(__file__).with_name("torch_operators.py")


_WIDE = {"float32": "float64", "uint32": "int64", "uint64": "int64"}
"""What torch is given: its arithmetic takes no unsigned integers past 8 bits."""


def interpreter() -> str:
    """The interpreter that has torch; empty where none is named."""
    return os.environ.get("ONWARD_TORCH_PYTHON", "")


@dataclass(frozen=True)
class Answer:
    """What torch says of a case.

    Attributes:
        gradients: by `dx<i>`; empty where it has no such form of the operator, and then
        refused: why.
        failed: what went wrong there.
    """

    gradients: Mapping[str, Array]
    refused: str = ""
    failed: str = ""


def ask_torch(cases: Sequence[Case]) -> list[Answer]:
    """Torch's gradients of cases, in float64.

    Raises:
        RuntimeError: the interpreter does not run, or has no torch.
    """
    described: list[dict[str, Any]] = []
    arrays: dict[str, Array] = {}
    for number, case in enumerate(cases):
        wide, inputs = in_float64(case)
        operands = case.operands()
        doubled = {
            f"x{i}": x.astype(_WIDE.get(x.dtype.name, x.dtype))
            for i, x in enumerate(operands)
            if x is not None
        }
        seeds = [v.name or "" for v in wide.graph.inputs if (v.name or "").startswith("dy")]
        arrays |= {f"{number}/{name}": x for name, x in doubled.items()}
        arrays |= {f"{number}/{name}": inputs[name] for name in seeds}
        described.append(
            {
                "op_type": case.op_type,
                "opset": case.opset,
                "attributes": {k: _plain(v) for k, v in case.attrs.items()},
                "inputs": [x is not None for x in operands],
                "outputs": case.outputs if isinstance(case.outputs, int) else len(case.outputs),
                "wrt": list(case.differentiated()),
                "seeds": [int(name.removeprefix("dy")) for name in seeds],
            }
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cases.json").write_text(json.dumps(described))
        np.savez(folder / "arrays.npz", **arrays)
        done = subprocess.run(
            [interpreter(), str(SCRIPT), name], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError(f"ONWARD_TORCH_PYTHON={interpreter()} does not answer: {done.stderr[-400:]}")
        said = json.loads((folder / "refused.json").read_text())
        found: list[dict[str, Array]] = [{} for _ in cases]
        with np.load(folder / "answers.npz") as answers:
            for key in answers.files:
                number_, _, output = key.partition("/")
                found[int(number_)][output] = answers[key]
    return [
        Answer(gradients, said["refused"].get(str(i), ""), said["failed"].get(str(i), ""))
        for i, gradients in enumerate(found)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_torch(case: Case, answer: Answer) -> bool:
    """Our gradients in float64 against torch's.

    Returns:
        Whether there was anything to compare.
    """
    assert not answer.failed, f"torch: {answer.failed}"
    if not answer.gradients:
        return False
    exact = run(*in_float64(case))
    for name, want in answer.gradients.items():
        dx = exact.get(name, np.zeros_like(want))
        scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        np.testing.assert_allclose(dx, want, rtol=1e-6, atol=1e-8 * scale, err_msg=f"{name}, torch")
    return True

"""Files made to hurt, and odd ones: an error of ours or a result, in bounded memory and time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.model.hostile import GROUPS

ROOT = Path(__file__).resolve().parents[2]

SAID = {
    "if in if 10000": "not an ONNX model, or the file is damaged",
    "if in if 40": "not an ONNX model, or the file is damaged",
    "functions doubling 60": "more than 4096 calls of functions",
    "functions doubling 16": r"more than 4096 calls of functions.*raise Limits\.max_calls",
    "functions in a line 10000": "more than 4096 calls of functions",
    "function calls itself": "functions call themselves: own::F -> own::F",
    "function two operands": r"node 'n' \(own::F\): it has 2 inputs, but the function has 1",
    "function two results": r"node 'n' \(own::F\): it has 2 outputs, but the function has 1",
    "reference outside of a function": r"node 'n' \(LeakyRelu\): attribute 'alpha' is that of a function",
    "cycle of two": "depends on itself: the graph has a cycle",
    "million empty nodes": "1000001 nodes, more than 500000",
    "Slice step 0": "node 'n', operator Slice, opset 17: .*'step' cannot be 0",
    "Loop without end": "node 'n', operator Loop, opset 17: its condition is still true after",
    "Loop without end or condition": r"run_limits\(max_open_",
    "Loop collects": "4,000,000,000,000 bytes",
    "Loop most, ends": r"ok y \[\] \[6.0\]",
    "Loop most, no condition, ends": r"ok y \[\] \[6.0\]",
    "If of two types": "node 'n', operator If, opset 17",
    "Range by 0": "node 'n_r', operator Range, opset 17: delta is 0",
    "Einsum of many letters": "node 'n', operator Einsum, opset 17: its result would take",
    "RegexFullMatch backtracking": r"node 'n', operator RegexFullMatch, opset 20: pattern '\(a\|aa\)\+b'",
    f"Pad {-(2**63)}": "node 'n', operator Pad, opset 17: (pads of .* take more|no tensor has the shape)",
    "LRN -5": "node 'n', operator LRN, opset 17: size is -5",
    "Conv (1, 0, 4, 4)": r"ok y \[1, 2, 3, 3\] \[0.0, 0.0, 0.0\]",
    "ConvTranspose (1, 0, 4, 4)": r"ok y \[1, 2, 5, 5\] \[0.0, 0.0, 0.0\]",
    "axes twice": r"ok y \[1, 3\] \[2.0, 2.0, 2.0\]",
    "function with fewer results used": "ok y",
    "input of no shape": "ok y",
    "function without nodes": "ok y",
}
"""What some files end in, in each engine that gets so far."""


def walked(group: str, engines: str, folder: Path) -> dict[str, dict[str, str]]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.model.walk_hostile", str(folder), group, engines],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {name: found for name, _, found in map(json.loads, ran.stdout.splitlines())}


def judged(files: dict[str, dict[str, str]]) -> None:
    assert len(files) > 10
    faults = {name: found for name, found in files.items() if any("FAULT" in said for said in found.values())}
    assert not faults
    for name in files.keys() & SAID.keys():
        found = files[name]
        for stage in [s for s in ("interpreter", "compiled") if s in found] or ["load"]:
            assert re.search(SAID[name], found[stage]), (name, found)


COMPILED = ("control", "nothing", "odd", "sizes", "slices")
"""Groups whose files reach a run, in which the engines can differ."""


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_file_ends_in_a_result_or_in_an_error_of_ours(group: str, tmp_path: Path) -> None:
    """And both engines take and refuse the same."""
    files = walked(group, "interpreter,compiled" if group in COMPILED else "interpreter", tmp_path)
    judged(files)
    for name, found in files.items():
        ours = [found[engine].startswith("ok") for engine in ("interpreter", "compiled") if engine in found]
        assert len(set(ours)) <= 1, (name, found)


def test_what_is_said_is_said_of_files_that_exist() -> None:
    assert SAID.keys() <= {name for group in GROUPS.values() for name, _ in group()}

"""A server as a child process, and what the programs ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onward_protos import grpc_service_pb2 as pb

__all__ = ["INFER", "STREAM", "cpu_seconds", "family", "memory_mb", "private_mb", "request", "role", "server"]

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_ROLES = {"onward-worker": "worker", "onward-zygote": "zygote", "onward-spare": "spare"}
INFER = "/inference.GRPCInferenceService/ModelInfer"


@contextmanager
def server(
    *arguments: str, log: Path | None = None, python: str = sys.executable, prefix: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server on free ports, and the line that it prints; `arguments` are its options, or a module's.

    `prefix` is a command that starts the command.
    """
    command = list(arguments) if arguments[:1] == ("-m",) else ["-m", "onward_server", *arguments]
    if arguments[:1] != ("-m",):
        command += ["--listen", "127.0.0.1:0"]
    with (log or Path("/dev/null")).open("w") as errors:
        process = subprocess.Popen(
            [*prefix, python, *command], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {log.read_text() if log else arguments}")
        yield process, json.loads(line)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])

    def below(root: int) -> list[int]:
        return [root, *(pid for child, owner in parents.items() if owner == root for pid in below(child))]

    return below(pid)


def request(model: str, array: np.ndarray, name: str = "x") -> bytes:
    """A request with one input, FP32 or INT64."""
    datatype = "INT64" if array.dtype == np.int64 else "FP32"
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    message = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[array.tobytes()])
    return message.SerializeToString()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all below it."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])

    def below(root: int) -> int:
        return ticks.get(root, 0) + sum(below(child) for child, parent in parents.items() if parent == root)

    return below(pid) / os.sysconf("SC_CLK_TCK")


def memory_mb(pids: Sequence[int]) -> float:
    """Resident memory of processes."""
    total = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) / 1024
    return total


def private_mb(pid: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def role(pid: int) -> str:
    """What a process of the server's is there for."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return _ROLES.get(name, "server")

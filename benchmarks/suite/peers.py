"""The peers: torch in a process of its own environment, and onnxruntime."""

from __future__ import annotations

import os
import pickle
import select
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from benchmarks.suite import ours
from benchmarks.suite.cases import Case, Kind

__all__ = ["OnnxRuntime", "Peer", "PeerError", "Torch", "TorchProcess", "torch_python"]

Results: TypeAlias = "tuple[list[float], list[np.ndarray[Any, Any]]]"
_ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """A peer cannot run something; the text says why."""


class Peer(Protocol):
    """A network on the other side."""

    def reset(self) -> None:
        """Back to the initial weights and state."""

    def times(self, count: int) -> Results:
        """Seconds and results of some steps in a row."""


def torch_python() -> str | None:
    """The interpreter that has torch: $ONWARD_TORCH_PYTHON."""
    return os.environ.get("ONWARD_TORCH_PYTHON")


class TorchProcess:
    """A torch worker. Between calls it sleeps on its pipe and leaves the cores alone."""

    def __init__(self, python: str, threads: int) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.suite.torch_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.version: str = self._answer(300)

    def call(self, command: str, argument: object = None, timeout: float = 600) -> Any:
        """Have something done. Raises `PeerError` when it fails or takes more than `timeout` seconds."""
        data = pickle.dumps((command, argument))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<q", len(data)) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError("the torch process is gone") from None
        return self._answer(timeout)

    @property
    def alive(self) -> bool:
        """Whether it can still be called."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, timeout: float) -> Any:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], timeout)[0]:
            self.close()
            raise PeerError(f"no answer in {timeout:.0f} s")
        head = stream.read(8)
        if len(head) < 8:
            raise PeerError(f"the torch process ended with code {self._process.wait()}")
        kind, reply = pickle.loads(stream.read(struct.unpack("<q", head)[0]))
        if kind == "error":
            raise PeerError(reply)
        return reply


class Torch:
    """A network built in a torch process, which holds one at a time."""

    def __init__(self, process: TorchProcess, request: Mapping[str, Any], cpu: bool = False) -> None:
        self._process = process
        self._cpu = cpu
        process.call("build", dict(request))

    @classmethod
    def of_case(
        cls,
        process: TorchProcess,
        case: Case,
        kind: Kind,
        batch: int,
        mode: str,
        weights: Mapping[str, np.ndarray[Any, Any]],
        threads: int,
        cpu: bool = False,
    ) -> Torch:
        """A network of the suite with the weights of ours."""
        x, target = case.batch(batch)
        return cls(
            process,
            {
                "name": case.network,
                "kind": kind,
                "mode": mode,
                "weights": dict(weights),
                "x": x,
                "target": target,
                "threads": threads,
                "learning_rate": ours.LEARNING_RATE,
                "momentum": ours.MOMENTUM,
            },
            cpu,
        )

    def reset(self) -> None:
        self._process.call("reset")

    def times(self, count: int, timeout: float = 600) -> Results:
        """Raises `PeerError` when torch fails."""
        seconds, results = self._process.call("run", (count, self._cpu), timeout)
        return seconds, results


class OnnxRuntime:
    """The deployed network in onnxruntime: all optimisations, sequential, its own default for spinning."""

    def __init__(
        self, model: bytes, feeds: Mapping[str, np.ndarray[Any, Any]], threads: int, cpu: bool = False
    ) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self._feeds = dict(feeds)
        self._clock = time.process_time if cpu else time.perf_counter

    def reset(self) -> None:
        pass

    def times(self, count: int) -> Results:
        seconds, results = [], []
        for _ in range(count):
            started = self._clock()
            (result,) = self._session.run(None, self._feeds)
            seconds.append(self._clock() - started)
            results.append(np.asarray(result))
        return seconds, results

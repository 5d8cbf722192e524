"""What a worker process does: opens models and runs them, one call at a time, until its socket is closed."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from onward.errors import OnwardError
from onward.graph import Array, TensorSpec
from onward_protos.tensors import datatype_of
from onward_server.dataplane.executors import ENGINES, Executor
from onward_server.dataplane.validation import check_transferable
from onward_server.dataplane.witness import Pair, checked, located
from onward_server.errors import ExecutionError, MemoryLimitError
from onward_server.model_settings import CrossCheckSettings
from onward_server.workers.memory import Region

__all__ = ["MAX_HEADER_BYTES", "spec_from", "work"]

MAX_HEADER_BYTES = 1 << 20
_MAX_TEXT = 8192


def work(channel: socket.socket, inputs: int, outputs: int) -> None:
    """Answer calls from `channel`; tensors come in `inputs` and go out in `outputs`, two memory files."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_HEADER_BYTES)
    source, target = Region(inputs), Region(outputs)
    executors: dict[str, Executor] = {}
    channel.send(json.dumps({"pid": os.getpid()}).encode())
    spent = time.process_time_ns()
    while message := channel.recv(MAX_HEADER_BYTES):
        header = json.loads(message)
        try:
            answer = _CALLS[header["call"]](executors, header, source, target)
        except MemoryError:
            answer = _failed(MemoryLimitError("the worker ran out of memory"))
        except OnwardError as error:
            answer = _failed(error)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is an answer too
            answer = _failed(ExecutionError(f"{type(error).__name__}: {error}"))
        if header["call"] == "check":
            # reading the call, and what was left to do behind the last answer, belongs to it
            answer["ns"] = time.process_time_ns() - spent
        spent = time.process_time_ns()
        data = json.dumps(answer).encode()
        if len(data) > MAX_HEADER_BYTES // 2:
            data = json.dumps(
                _failed(MemoryLimitError("the model has too many outputs to describe"))
            ).encode()
        channel.send(data)


def spec_from(entry: list[Any]) -> TensorSpec:
    """A tensor's type as a worker described it."""
    from onward_server.workers.memory import numpy_type

    name, datatype, shape = entry
    return TensorSpec(name, numpy_type(datatype), None if shape is None else tuple(shape))


def _open(
    executors: dict[str, Executor], header: Mapping[str, Any], source: Region, target: Region
) -> dict[str, Any]:
    _bound(header)
    executor = ENGINES[header["engine"]](Path(header["path"]), int(header["threads"]))
    check_transferable([*executor.inputs, *executor.outputs])
    executors[header["key"]] = executor
    return {
        "inputs": [_entry(spec) for spec in executor.inputs],
        "outputs": [_entry(spec) for spec in executor.outputs],
        "texts": None if executor.texts is None else executor.texts.name,
    }


def _run(
    executors: dict[str, Executor], header: Mapping[str, Any], source: Region, target: Region
) -> dict[str, Any]:
    inputs: dict[str, Array] = source.read(header["tensors"], copy=False)
    start = time.perf_counter_ns()
    outputs = executors[header["key"]].run(inputs, header["outputs"])
    ended = time.perf_counter_ns()
    size = sum(array.nbytes for array in outputs.values())
    if size > header["limit"]:
        raise MemoryLimitError(f"the outputs take {size} bytes; an answer may have {header['limit']}")
    return {"tensors": target.write(outputs), "ns": ended - start}


def _check(
    executors: dict[str, Executor], header: Mapping[str, Any], source: Region, target: Region
) -> dict[str, Any]:
    arrays = source.read(header["tensors"], copy=False)
    pairs = [
        Pair(
            {name: arrays[f"{number}i{name}"] for name in inputs},
            {name: arrays[f"{number}o{name}"] for name in outputs},
        )
        for number, (inputs, outputs) in enumerate(header["pairs"])
    ]
    settings = _settings(header["settings"])
    results = checked(executors[header["key"]], pairs, settings, is_reference=header["is_reference"])
    return {"results": [_failed(r) if isinstance(r, OnwardError) else asdict(r) for r in results]}


def _locate(
    executors: dict[str, Executor], header: Mapping[str, Any], source: Region, target: Region
) -> dict[str, Any]:
    _bound(header)
    arrays = source.read(header["tensors"], copy=True)
    return {"text": located(Path(header["path"]), arrays, _settings(header["settings"]))}


def _bound(header: Mapping[str, Any]) -> None:
    limit = int(header["memory"])
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@lru_cache(64)
def _settings(text: str) -> CrossCheckSettings:
    return CrossCheckSettings.model_validate_json(text)


def _close(
    executors: dict[str, Executor], header: Mapping[str, Any], source: Region, target: Region
) -> dict[str, Any]:
    executors.pop(header["key"], None)
    return {}


_CALLS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "open": _open,
    "run": _run,
    "check": _check,
    "locate": _locate,
    "close": _close,
}


def _entry(spec: TensorSpec) -> list[Any]:
    return [spec.name, datatype_of(spec.dtype), None if spec.shape is None else list(spec.shape)]


def _failed(error: OnwardError) -> dict[str, Any]:
    return {"error": type(error).__name__, "text": str(error)[:_MAX_TEXT]}

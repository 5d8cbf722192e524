"""`python -m onward_server.training.runner`: one task of a job, in a process and within bounds of its own.

Standard input has the task as a line of JSON; a further line, `stop`, asks a run to stop after its step. Each
line of standard output is an event, the last one `result` or `error`. The process ends with its input, so
nothing outlives a server, however that ends.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, final

if TYPE_CHECKING:
    import onnx_ir as ir

    from onward.runs import CancelToken, Event

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_MAX_TEXT = 4096
_FIRST_INTERVAL = 0.25
_GROWTH = 2000
"""Events of progress come at least `_FIRST_INTERVAL` s apart, later a `_GROWTH`th of the time so far."""


def main() -> None:
    """Read the task, do it, tell how it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # what libraries print goes to the log
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline() or "{}")
    if not task:
        return
    _bound(task)
    os.chdir(task["folder"])
    teller = _Teller(lines)
    try:
        result = _TASKS[task["task"]](task, teller)
    except Exception as error:  # noqa: BLE001 - the last line of defence of a task
        _tell_error(teller, error)
    else:
        teller.tell("result", result)
    lines.flush()
    sys.stderr.flush()
    os._exit(0)


def _bound(task: Mapping[str, Any]) -> None:
    os.nice(task["nice"])
    with suppress(OSError):  # the kernel ends jobs before the server
        Path("/proc/self/oom_score_adj").write_text("500")
    limit = int(task["memory"])
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _tell_error(teller: _Teller, error: Exception) -> None:
    from onward.errors import OnwardError
    from onward_server.storage import is_full

    if isinstance(error, MemoryError):
        kind, text = "MemoryLimitError", "the job needs more memory than it may have"
    elif is_full(error):
        kind, text = "StorageFullError", "the server's disk is full"
    elif isinstance(error, OnwardError):
        kind, text = type(error).__name__, str(error)[:_MAX_TEXT]
    else:
        import traceback

        traceback.print_exc()
        kind, text = "", f"{type(error).__name__}: {error}"[:_MAX_TEXT]
    teller.tell("error", {"kind": kind, "text": text})


@final
class _Teller:
    """Writes events, those of progress not too often."""

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._rows = 0
        self._start = time.monotonic()
        self._last: dict[str, float] = {}

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one."""
        json.dump({"kind": kind, "time": time.time(), "fields": _finite(fields)}, self._lines)
        self._lines.write("\n")
        self._lines.flush()

    def sometimes(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one of those that come with every step, if it is time."""
        now = time.monotonic()
        if now - self._last.get(kind, 0.0) >= max(_FIRST_INTERVAL, (now - self._start) / _GROWTH):
            self._last[kind] = now
            self.tell(kind, fields)

    def event(self, event: Event) -> None:
        """Write an event of a run."""
        from onward import runs

        match event:
            case runs.StepEnded():
                self._rows += event.samples
                self.sometimes(
                    "progress",
                    {
                        "epoch": event.epoch,
                        "rows": self._rows,
                        "batch": event.batch,
                        "step": event.step,
                        "loss": event.loss,
                        "learning_rate": event.learning_rate,
                    },
                )
            case runs.DataRead():
                sizes = {"train": event.train, "validation": event.validation, "test": event.test}
                self.tell("data_read", {**sizes, "inputs": dict(event.inputs), "notes": list(event.notes)})
            case runs.Started():
                fields = {"weights": event.weights, "about": event.task, "head": event.head}
                sizes = {"epochs": event.epochs, "batches": event.batches}
                self.tell("started", {**fields, **sizes, "resumed": event.resumed is not None})
            case runs.EpochEnded():
                fields = {"epoch": event.epoch, "epochs": event.epochs, "rows": self._rows}
                self.tell("epoch", {**fields, "row": dict(event.row)})
            case runs.CheckpointWritten():
                self.sometimes("checkpoint", {"step": event.step})
            case runs.Measured():
                self.tell("measured", {"part": event.part, **event.measures.as_dict()})
            case runs.Exported():
                self.tell("exported", {"takes": list(event.takes), "notes": list(event.notes)})
            case runs.Warned():
                self.tell("warned", {"text": event.text})
            case _:  # of metrics so far the epoch's row tells; how it finished, the result
                pass


def _train(task: Mapping[str, Any], teller: _Teller) -> dict[str, Any]:
    from onward import runs
    from onward.model import load, read_provenance

    token = runs.CancelToken()
    threading.Thread(target=_listen, args=(token,), daemon=True).start()
    _fetch(task)
    config = runs.read_run(
        Path(task["run"]),
        {"output": task["output"], "overwrite": True, "checkpoint.path": task["checkpoint"]},
    )
    checkpoint = task["checkpoint"] if Path(task["checkpoint"]).is_file() else None
    found = runs.execute(config, events=teller.event, cancel=token, resume=checkpoint).finished
    result: dict[str, Any] = {"status": found.status, "reason": found.reason}
    if found.output is not None:
        provenance = read_provenance(load(found.output))
        assert provenance is not None
        result["figures"] = dict(provenance.metrics)
        result["data_hash"] = provenance.data_hash
        result["sha256"] = hashlib.sha256(found.output.read_bytes()).hexdigest()
    return result


def _listen(token: CancelToken) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            token.cancel()
    os._exit(3)  # the server is gone


def _fetch(task: Mapping[str, Any]) -> None:
    """Copy what the data's URL has into the job's folder, once."""
    if not task["url"]:
        return
    target = Path(task["fetched"])
    if target.is_file():
        return
    from onward.errors import ConfigError, DataError, StorageError
    from onward_server.storage import is_full

    try:
        import fsspec
    except ImportError:
        raise ConfigError("URLs need onward[remote] on the server") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    left = int(task["data_bytes"])
    try:
        with fsspec.open(task["url"], "rb") as source, part.open("wb") as file:
            while block := source.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise DataError(f"the data have more than {task['data_bytes']} bytes")
                file.write(block)
    except DataError:
        part.unlink(missing_ok=True)
        raise
    except Exception as error:
        part.unlink(missing_ok=True)
        if is_full(error):
            raise
        print(f"{task['url']}: {type(error).__name__}: {error}", file=sys.stderr)
        raise StorageError("the data's URL cannot be read; the server's log has the details") from None
    part.replace(target)


def _evaluate(task: Mapping[str, Any], teller: _Teller) -> dict[str, Any]:
    """Figures, the interface, and the comparison with onnxruntime on samples of the data."""
    from onward.errors import ConfigError, DataError, StorageError
    from onward.model import load
    from onward.runs.evaluation import evaluate
    from onward.runs.preparation import feeds_of
    from onward.verify import compare, quantised_tolerances

    threading.Thread(target=_listen_idle, daemon=True).start()
    path = Path(task["model"])
    _fetch(task)
    try:
        if task["bundled"]:
            _refuse_paths(path)
        found = evaluate(path, {"spec": task["data"] or None}, part=task["part"], threads=task["threads"])
    except (ConfigError, DataError, StorageError):
        if not task["interface"]:
            raise
        found = None  # no data to be had: the comparison draws random inputs
    inputs = None
    if found is not None:
        few = found.samples.take(range(min(task["samples"], len(found.samples))))
        inputs = feeds_of(few, found.session.inputs)
    model = load(path)
    report = compare(model, inputs, tolerance=quantised_tolerances(model))
    difference = "" if report.passed else str(report.first_difference or report.failures[0])
    result: dict[str, Any] = {
        "passed": report.passed,
        "max_absolute_error": max((row.max_abs for row in report.rows), default=0.0),
        "difference": difference,
        "interface": _interface(path),
    }
    return result if found is None else {**result, "measures": found.measures.as_dict()}


def _refuse_paths(path: Path) -> None:
    """What a file says of its data is no permission to read them."""
    from onward.errors import ConfigError
    from onward.model import load, read_provenance
    from onward.runs.preparation import stored_data

    if ":" in str(stored_data(read_provenance(load(path))).get("spec", "")):
        raise ConfigError("no job here trained the model: give the data to measure it on")


def _interface(path: Path) -> dict[str, list[str]]:
    from onward.engine import Session

    session = Session(path, engine="interpreter")
    return {"inputs": list(map(str, session.inputs)), "outputs": list(map(str, session.outputs))}


def _listen_idle() -> None:
    for _ in sys.stdin:
        pass
    os._exit(3)


def _parameters(task: Mapping[str, Any], teller: _Teller) -> dict[str, Any]:
    """Write a model's parameters as one buffer of float32."""
    import numpy as np

    from onward.model import load

    threading.Thread(target=_listen_idle, daemon=True).start()
    model = load(task["model"])
    entries = []
    with Path(task["target"]).open("wb") as file:
        for name in _parameter_names(model):
            array = _array(model, name)
            entries.append([name, list(array.shape)])
            file.write(np.ascontiguousarray(array, "<f4").tobytes())
    return {"entries": entries}


def _combine(task: Mapping[str, Any], teller: _Teller) -> dict[str, Any]:
    """Write a model with the parameters of a buffer; of its figures nothing is known."""
    from dataclasses import replace

    import numpy as np
    import onnx_ir as ir

    from onward.model import load, read_provenance, save, write_provenance

    threading.Thread(target=_listen_idle, daemon=True).start()
    model = load(task["model"])
    values = np.fromfile(task["buffer"], "<f4")
    start = 0
    for name in _parameter_names(model):
        old = _array(model, name)
        new = values[start : start + old.size].reshape(old.shape).astype(old.dtype)
        model.graph.initializers[name].const_value = ir.tensor(new, name=name)
        start += old.size
    provenance = read_provenance(model)
    if provenance is not None:
        write_provenance(model, replace(provenance, metrics={}))
    output = Path(task["output"])
    save(model, output)
    return {
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
        "data_hash": "" if provenance is None else provenance.data_hash,
    }


def _parameter_names(model: ir.Model) -> list[str]:
    """What training changes: weights and running statistics, but nothing of the preparation in the graph."""
    from onward.model import read_provenance
    from onward.passes import detach_preparation
    from onward.runs.preparation import Prepared
    from onward.train.preparation import choose_parameters

    prepared = Prepared.of(read_provenance(model))
    network = model
    if prepared.inside:
        changed = [name for name, each in prepared.preparation.numbers.items() if not each.empty]
        network = detach_preparation(model, changed)
    outputs = [value.name or "" for value in network.graph.outputs]
    names = choose_parameters(network, outputs, None, ())
    for node in network.graph:
        if node.op_type == "BatchNormalization":
            names += [v.name or "" for v in node.inputs[3:5] if v is not None and v.is_initializer()]
    return [name for name in dict.fromkeys(names) if name in model.graph.initializers]


def _array(model: ir.Model, name: str) -> Any:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


_TASKS: Mapping[str, Callable[[Mapping[str, Any], _Teller], dict[str, Any]]] = {
    "train": _train,
    "evaluate": _evaluate,
    "parameters": _parameters,
    "combine": _combine,
}


def _finite(value: Any) -> Any:
    """Values that JSON has; other numbers become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


if __name__ == "__main__":
    main()

"""Torch's side: a process that builds networks and runs steps when told to, and sleeps in between.

Runs in the interpreter that has torch. Messages are pickled tuples on stdin and stdout, each after its length
in 8 bytes.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from benchmarks.suite.torch_networks import NETWORKS, convert
from torch.nn import functional

_STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class _Job:
    """A network ready to run: `step` gives the loss or the logits; `reset` goes back to the start."""

    step: Callable[[], torch.Tensor]
    reset: Callable[[], None]


def _tensors(name: str, weights: dict[str, np.ndarray[Any, Any]], last: bool) -> dict[str, torch.Tensor]:
    tensors = {}
    for key, array in convert(name, weights).items():
        tensor = torch.from_numpy(np.array(array))
        tensors[key] = tensor.to(memory_format=torch.channels_last) if last and tensor.ndim == 4 else tensor
    return tensors


def _exported(request: dict[str, Any]) -> _Job:
    """A network of `benchmarks.exported` with its own weights, trained on a mean of squares."""
    from benchmarks.exported.networks import build

    torch.set_num_threads(request["threads"])
    layout = torch.channels_last if request["mode"] == "channels_last" else torch.preserve_format
    model = build(request["architecture"])[0].to(memory_format=layout)
    inputs = [torch.from_numpy(x) for x in request["inputs"]]
    inputs = [x.to(memory_format=layout) if x.ndim == 4 else x for x in inputs]
    target = torch.from_numpy(request["target"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=request["learning_rate"], momentum=request["momentum"], fused=True
    )
    start = copy.deepcopy(model.state_dict())

    def train() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.mse_loss(model(*inputs), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def reset() -> None:
        model.load_state_dict(start)
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()

    return _Job(train, reset)


def _build(request: dict[str, Any]) -> _Job:
    if "architecture" in request:
        return _exported(request)
    name, mode = request["name"], request["mode"]
    torch.set_num_threads(request["threads"])
    last = mode in ("channels_last", "compile channels_last")
    tensors = _tensors(name, request["weights"], last)
    x = torch.from_numpy(request["x"])
    if last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    target = torch.from_numpy(request["target"])
    forward = NETWORKS[name]
    compiled = mode.startswith("compile")
    if request["kind"] == "inference":

        def infer() -> torch.Tensor:
            return forward(tensors, x, False)

        run = torch.compile(infer) if compiled else infer

        def step() -> torch.Tensor:
            with torch.inference_mode():
                return run()

        return _Job(step, lambda: None)
    parameters = [t.requires_grad_() for k, t in tensors.items() if not k.endswith(_STATISTICS)]
    start = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    optimizer = torch.optim.SGD(
        parameters, lr=request["learning_rate"], momentum=request["momentum"], fused=True
    )

    def lossy() -> torch.Tensor:
        return functional.cross_entropy(forward(tensors, x, True), target)

    loss_of = torch.compile(lossy) if compiled else lossy

    def train() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def reset() -> None:
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(start[key])
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()

    return _Job(train, reset)


def _run(job: _Job, count: int, cpu: bool) -> tuple[list[float], list[np.ndarray[Any, Any]]]:
    clock = time.process_time if cpu else time.perf_counter
    seconds, results = [], []
    for _ in range(count):
        started = clock()
        result = job.step().numpy()
        seconds.append(clock() - started)
        results.append(np.array(result))
    return seconds, results


def _read(stream: BinaryIO) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        return None
    return pickle.loads(stream.read(struct.unpack("<q", head)[0]))


def _write(stream: BinaryIO, message: object) -> None:
    data = pickle.dumps(message)
    stream.write(struct.pack("<q", len(data)) + data)
    stream.flush()


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not reach the pipe
    job: _Job | None = None
    _write(answers, ("ok", str(torch.__version__)))
    while (message := _read(sys.stdin.buffer)) is not None:
        command, argument = message
        reply: object = None
        try:
            if command == "build":
                job = None
                if argument["mode"].startswith("compile"):
                    torch._dynamo.reset()
                gc.collect()
                job = _build(argument)
            elif command == "peak memory":
                reply = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            elif job is None:
                raise RuntimeError("nothing is built")
            elif command == "reset":
                job.reset()
            elif command == "run":
                reply = _run(job, *argument)
            else:
                raise RuntimeError(f"unknown command {command}")
        except Exception as error:  # noqa: BLE001 - the other side reports it
            _write(answers, ("error", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
        else:
            _write(answers, ("ok", reply))


if __name__ == "__main__":
    main()

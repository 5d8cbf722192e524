"""Exports networks from torch and writes what torch makes of a batch; knows nothing of onward.

    python -m benchmarks.exported.torch_side FOLDER ARCHITECTURE.EXPORTER …

EXPORTER is `script` or `dynamo`. FOLDER/ARCHITECTURE.EXPORTER gets `model.onnx` (opset 17 or 18, training
mode kept, batch dynamic, no constant folding, so that parameters keep their names), `serve.onnx` (evaluation
mode, the exporter's defaults), `inputs.npz`, `outputs.npz` and `gradients.npz`: those of
mean((output - target)^2) with respect to each parameter, in float64. A line of output for each: its name, and
the reason where it failed.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from benchmarks.exported.networks import build
from torch import nn

BATCH = 8
"""Samples in the batch that is compared; files are exported with two."""


EAGER = ("t5_encoder", "swin")
"""Networks whose fused attention the `dynamo` exporter of torch 2.13 does not take."""


def write(architecture: str, exporter: str, folder: Path) -> None:
    """Export one network into a folder, with a batch and its gradients."""
    folder.mkdir(parents=True, exist_ok=True)
    model, draw = build(architecture)
    if exporter == "dynamo" and architecture in EAGER:
        model.model.set_attn_implementation("eager")
    example, batch = draw(2), draw(BATCH)
    names = [f"input{i}" for i in range(len(batch))]
    graph = architecture == "gnn"
    export(copy.deepcopy(model).eval(), example, names, exporter, graph, False, folder / "serve.onnx")
    export(copy.deepcopy(model), example, names, exporter, graph, True, folder / "model.onnx")
    exact = copy.deepcopy(model).double()
    output = exact(*(x.double() if x.is_floating_point() else x for x in batch))
    target = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(output.shape)))
    ((output - target) ** 2).mean().backward()
    np.savez(folder / "inputs.npz", **{n: x.numpy() for n, x in zip(names, batch, strict=True)})
    np.savez(folder / "outputs.npz", output=output.detach().numpy(), target=target.numpy())
    # of names that share a parameter, the one that the file has
    known = {tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in exact.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    found = {
        next((name for name in names if name in known), names[0]): parameter.grad.numpy()
        for parameter, names in names_of.items()
        if parameter.grad is not None
    }
    np.savez(folder / "gradients.npz", **found)


def export(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    names: list[str],
    exporter: str,
    graph: bool,
    training: bool,
    path: Path,
) -> None:
    """Write a file, as it is trained or as it is served."""
    common: dict[str, Any] = {"input_names": names, "output_names": ["output"]}
    if training:
        common |= {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    if exporter == "script":
        axes = {n: {0: "N"} for n in [*names, "output"]}
        if graph:
            axes = {names[0]: {0: "N"}, names[1]: {1: "E"}, "output": {0: "N"}}
        torch.onnx.export(
            model, example, str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **common
        )
        return
    n = torch.export.Dim("N", min=2, max=4096)
    shapes: tuple[Any, ...] = tuple({0: n} for _ in names)
    if graph:
        shapes = ({0: n}, {1: torch.export.Dim("E", min=2, max=1 << 20)})
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        shapes = (shapes,)
    if training:
        common |= {"optimize": False}
    torch.onnx.export(
        model, example, str(path), dynamo=True, opset_version=18, dynamic_shapes=shapes, external_data=False,
        verbose=False, **common,
    )  # fmt: skip


def main() -> None:
    """Export what is named."""
    for network in sys.argv[2:]:
        try:
            architecture, exporter = network.split(".")
            write(architecture, exporter, Path(sys.argv[1]) / network)
        except Exception as error:  # noqa: BLE001 - every network gets its line
            told = " ".join(str(error).split())[:300]
            print(network, f"{type(error).__name__}: {told}", flush=True)
        else:
            print(network, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

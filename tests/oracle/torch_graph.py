"""Trains ONNX inference models with torch autograd and torch.optim, in float64; knows nothing of onward.

    python torch_graph.py FOLDER

FOLDER/jobs.json maps the name of a job to what it runs: see `train`. For each job, FOLDER/<job>.batches.npz
holds the arrays of every step as `<step>/<name>`, and FOLDER/<job>.npz is written with `<step>/loss`,
`<step>/gradient/<parameter>`, `<step>/parameter/<parameter>` and `<step>/statistic/<name>`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

assert not [name for name in sys.modules if name.split(".")[0] == "onward"]

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from torch_operators import apply  # noqa: E402


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


class Network:
    """The forward graph of a model in training mode, on float64 tensors."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self.graph = model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain == "")
        # NumPy owns what it reads from a file for reading only; torch wants to write
        self.weights = {
            t.name: _double(torch.tensor(np.array(onnx.numpy_helper.to_array(t))))
            for t in self.graph.initializer
        }
        self.statistics: dict[str, Tensor] = {}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values: dict[str, Any] = {"": None, **self.weights, **inputs}
        for node in self.graph.node:
            operands = [values[name] for name in node.input]
            attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
            if node.op_type == "BatchNormalization":
                results: Any = [self._batch_normalization(list(node.input), *operands, **attributes)]
            elif node.op_type == "Dropout":
                assert operands[1].item() == 0, "only dropout that drops nothing has one answer"
                results = operands[:1]
            else:
                results = apply(node.op_type, self.opset, len(node.output), operands, attributes)
            values.update(zip(node.output, results, strict=False))
        return {o.name: values[o.name] for o in self.graph.output}

    def _batch_normalization(
        self,
        names: list[str],
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
    ) -> Tensor:
        """ONNX moves the running variance by the population's variance, torch would take the sample's."""
        axes = [0, *range(2, x.ndim)]
        batch = x.detach()
        for name, old, new in (
            (names[3], mean, batch.mean(axes)),
            (names[4], var, batch.var(axes, correction=0)),
        ):
            self.statistics[name] = momentum * old + (1 - momentum) * new
        return F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def cross_entropy(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    weights = options.get("class_weights")
    return F.cross_entropy(
        x,
        t,
        None if weights is None else x.new_tensor(weights),
        ignore_index=options.get("ignore_index", -100),
        label_smoothing=options.get("label_smoothing", 0.0),
    )


def binary_cross_entropy(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    weight = x.new_tensor(options.get("positive_weight", 1.0))
    return F.binary_cross_entropy_with_logits(x, t, pos_weight=weight)


def kl_divergence(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    """The sum over classes, the mean over the rest; torch's "mean" would divide by the classes too."""
    each = F.kl_div(F.log_softmax(x, 1), t, reduction="none")
    return each.sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor, dict[str, Any]], Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": lambda x, t, options: F.mse_loss(x, t),
    "l1": lambda x, t, options: F.l1_loss(x, t),
    "huber": lambda x, t, options: F.huber_loss(x, t, delta=options["delta"]),
    "kl_divergence": kl_divergence,
}


def train(folder: Path, name: str, job: dict[str, Any]) -> None:
    """Run one job and write what it found.

    The job's fields: `model`, a file; `losses`, for each output a name and options; `optimizer`, a class of
    torch.optim and its options; `groups`, options by parameter; `parameters`, what is trained; `clip_norm`,
    `clip_value`; `accumulate`, batches an update.
    """
    network = Network(folder / job["model"])
    parameters = {key: network.weights[key].requires_grad_() for key in job["parameters"]}
    kind, options = job["optimizer"]
    groups = [{"params": [p], **job["groups"].get(key, {})} for key, p in parameters.items()]
    optimizer = getattr(torch.optim, kind)(groups, **options)
    batches = np.load(folder / f"{name}.batches.npz")
    found: dict[str, Any] = {}
    for step in range(job["steps"]):
        prefix = f"{step}/"
        arrays = {
            key.removeprefix(prefix): _double(torch.tensor(batches[key]))
            for key in batches.files
            if key.startswith(prefix)
        }
        outputs = network.forward(arrays)
        parts = [
            weight * LOSSES[loss](outputs[output], arrays[f"target:{output}"], settings)
            for output, (loss, settings, weight) in job["losses"].items()
        ]
        loss = torch.stack(parts).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()))
        found[f"{step}/loss"] = loss.detach()
        for (key, parameter), grad in zip(parameters.items(), grads, strict=True):
            found[f"{step}/gradient/{key}"] = grad
            share = grad / job["accumulate"]
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        if (step + 1) % job["accumulate"] == 0:
            if job["clip_value"] is not None:
                torch.nn.utils.clip_grad_value_(parameters.values(), job["clip_value"])
            if job["clip_norm"] is not None:
                torch.nn.utils.clip_grad_norm_(parameters.values(), job["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
        network.weights.update(network.statistics)
        found |= {f"{step}/parameter/{key}": p.detach().clone() for key, p in parameters.items()}
        found |= {f"{step}/statistic/{key}": s for key, s in network.statistics.items()}
    np.savez(folder / f"{name}.npz", **{key: tensor.numpy() for key, tensor in found.items()})


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        train(folder, name, job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Trains ONNX inference models with torch autograd and torch.optim, in float64; knows nothing of onward.

    python torch_graph.py FOLDER

FOLDER/jobs.json maps the name of a job to what it runs: see `train`. For each job, FOLDER/<job>.batches.npz
holds the arrays of every step as `<step>/<name>`, and FOLDER/<job>.npz is written with `<step>/loss`,
`<step>/gradient/<parameter>`, `<step>/parameter/<parameter>` and `<step>/statistic/<name>`.
"""
# Functions have their operators' names.
# ruff: noqa: N802

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

assert not [name for name in sys.modules if name.split(".")[0] == "onward"]

OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Div": torch.div,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Relu": F.relu,
    "Selu": lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: (
        gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))
    ),
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Transpose": lambda x, perm: x.permute(perm),
}


def operator(function: Callable[..., Any]) -> Callable[..., Any]:
    OPERATORS[function.__name__] = function
    return function


def _pads(pads: Sequence[int]) -> list[int]:
    """ONNX's [begin..., end...] as torch wants it: the last axis first, (begin, end)."""
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]


@operator
def Clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())


@operator
def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Tensor:
    n = w.ndim - 2
    x = F.pad(x, _pads(pads or [0] * 2 * n))
    convolve = {1: F.conv1d, 2: F.conv2d}[n]
    return convolve(x, w, b, strides or [1] * n, 0, dilations or [1] * n, group)


@operator
def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    output_padding: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> Tensor:
    whole = F.conv_transpose2d(x, w, b, tuple(strides), 0, tuple(output_padding), group, tuple(dilations))
    return whole[:, :, pads[0] : whole.shape[2] - pads[2], pads[1] : whole.shape[3] - pads[3]]


@operator
def Dropout(x: Tensor, ratio: Tensor) -> Tensor:
    assert ratio.item() == 0, "only dropout that drops nothing has one answer"
    return x


@operator
def Gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    picked = torch.index_select(x, axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator
def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | float = 0.0,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    return alpha * ((a.T if transA else a) @ (b.T if transB else b)) + beta * c


@operator
def GroupNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator
def LRN(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    assert size % 2, "torch and ONNX put the middle of an even window in different places"
    return F.local_response_norm(x, size, alpha, beta, bias)


@operator
def LSTM(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *, hidden_size: int, direction: str = "forward") -> Any:
    """Y [T, directions, N, H], Y_h, Y_c; gates in ONNX's order i, o, f, c."""
    ys, hs, cs = [], [], []
    for d in range(len(w)):
        backward = direction == "reverse" or d == 1
        h = c = x.new_zeros(x.shape[1], hidden_size)
        states = []
        for xt in x.flip(0) if backward else x:
            gates = xt @ w[d].T + h @ r[d].T + b[d, : 4 * hidden_size] + b[d, 4 * hidden_size :]
            i, o, f, g = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        ys.append(torch.stack(states[::-1] if backward else states))
        hs.append(h)
        cs.append(c)
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)


@operator
def LayerNormalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


@operator
def MaxPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> Tensor:
    n = len(kernel_shape)
    x = F.pad(x, _pads(pads or [0] * 2 * n), value=-math.inf)
    pool = {1: F.max_pool1d, 2: F.max_pool2d}[n]
    return pool(x, kernel_shape, strides or [1] * n, 0, dilations or [1] * n)


@operator
def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    count_include_pad: int = 0,
) -> Tensor:
    n = len(kernel_shape)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d}[n]
    pads, strides = pads or [0] * 2 * n, strides or [1] * n
    share = torch.ones_like(x)
    shares = pool(F.pad(share, _pads(pads), value=float(count_include_pad)), kernel_shape, strides)
    return pool(F.pad(x, _pads(pads)), kernel_shape, strides) / shares


@operator
def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@operator
def Pad(x: Tensor, pads: Tensor, value: Tensor | None = None, *, mode: str = "constant") -> Tensor:
    assert mode == "constant"
    return F.pad(x, _pads(pads.tolist()), value=0.0 if value is None else value.item())


@operator
def Reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape.tolist())])


@operator
def Squeeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes.tolist()), reverse=True):
        x = x.squeeze(axis)
    return x


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


class Network:
    """The forward graph of a model in training mode, on float64 tensors."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
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
                results: Any = self._batch_normalization(list(node.input), *operands, **attributes)
            else:
                results = OPERATORS[node.op_type](*operands, **attributes)
            if not isinstance(results, tuple):
                results = (results,)
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

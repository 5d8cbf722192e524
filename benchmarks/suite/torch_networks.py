"""The same networks in torch, as users write them for speed: in-place activations, fused attention.

A network is a function of its tensors by Onward's names, an input and whether it trains. This module runs in
the interpreter that has torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

__all__ = ["NETWORKS", "Forward", "convert"]

Tensors: TypeAlias = Mapping[str, torch.Tensor]
Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
Forward: TypeAlias = Callable[[Tensors, torch.Tensor, bool], torch.Tensor]


def _dense(p: Tensors, x: torch.Tensor, name: str) -> torch.Tensor:
    return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _norm(p: Tensors, x: torch.Tensor, name: str, training: bool) -> torch.Tensor:
    return functional.batch_norm(
        x,
        p[f"{name}.running_mean"],
        p[f"{name}.running_var"],
        p[f"{name}.scale"],
        p[f"{name}.bias"],
        training,
        0.1,
        1e-5,
    )


def _layer_norm(p: Tensors, x: torch.Tensor, name: str) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], p[f"{name}.scale"], p[f"{name}.bias"], 1e-5)


def mlp(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    x = torch.relu_(_dense(p, x, "dense_1"))
    x = torch.relu_(_dense(p, x, "dense_2"))
    return _dense(p, x, "dense_3")


def lenet5(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    x = functional.max_pool2d(
        torch.relu_(functional.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2)), 2
    )
    x = functional.max_pool2d(
        torch.relu_(functional.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2
    ).flatten(1)
    x = torch.relu_(_dense(p, x, "fc1"))
    return _dense(p, torch.relu_(_dense(p, x, "fc2")), "fc3")


def textcnn(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    """As 2-D convolution over one row: word vectors are channels_last as they come out of the embedding."""
    x = functional.embedding(x, p["embedding.weight"]).transpose(1, 2).unsqueeze(2)
    pooled = [
        torch.relu_(functional.conv2d(x, p[f"conv{w}.weight"], p[f"conv{w}.bias"])).squeeze(2).max(2).values
        for w in (3, 4, 5)
    ]
    return _dense(p, torch.cat(pooled, 1), "fc")


def _conv_norm(
    p: Tensors, x: torch.Tensor, conv: str, norm: str, stride: int, training: bool
) -> torch.Tensor:
    w = p[f"{conv}.weight"]
    return _norm(p, functional.conv2d(x, w, None, stride, w.shape[-1] // 2), norm, training)


def _residual(p: Tensors, x: torch.Tensor, name: str, stride: int, training: bool) -> torch.Tensor:
    """A basic or a bottleneck block: the parameters tell."""
    bottleneck = f"{name}.conv3.weight" in p
    y = torch.relu_(_conv_norm(p, x, f"{name}.conv1", f"{name}.bn1", 1 if bottleneck else stride, training))
    y = _conv_norm(p, y, f"{name}.conv2", f"{name}.bn2", stride if bottleneck else 1, training)
    if bottleneck:
        y = _conv_norm(p, torch.relu_(y), f"{name}.conv3", f"{name}.bn3", 1, training)
    if f"{name}.downsample.0.weight" in p:
        x = _conv_norm(p, x, f"{name}.downsample.0", f"{name}.downsample.1", stride, training)
    elif stride != 1:
        x = x[:, :, ::stride, ::stride]
        missing = y.shape[1] - x.shape[1]
        x = functional.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
    return torch.relu_(y.add_(x))


def resnet20(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    x = torch.relu_(_conv_norm(p, x, "conv1", "bn1", 1, training))
    for stage in (1, 2, 3):
        for i in range(3):
            x = _residual(p, x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1, training)
    return _dense(p, functional.adaptive_avg_pool2d(x, 1).flatten(1), "fc")


def resnet(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    """ResNet-18 and ResNet-50."""
    x = torch.relu_(_conv_norm(p, x, "conv1", "bn1", 2, training))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in p:
            x = _residual(p, x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1, training)
            i += 1
    return _dense(p, functional.adaptive_avg_pool2d(x, 1).flatten(1), "fc")


def alexnet(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    def conv(x: torch.Tensor, name: str, stride: int, padding: int, groups: int) -> torch.Tensor:
        w, b = p[f"{name}.weight"], p[f"{name}.bias"]
        return torch.relu_(functional.conv2d(x, w, b, stride, padding, 1, groups))

    def norm(x: torch.Tensor) -> torch.Tensor:
        return functional.local_response_norm(x, 5, 5e-4, 0.75, 2.0)

    x = functional.max_pool2d(norm(conv(x, "conv1", 4, 0, 1)), 3, 2)
    x = functional.max_pool2d(norm(conv(x, "conv2", 1, 2, 2)), 3, 2)
    x = conv(conv(conv(x, "conv3", 1, 1, 1), "conv4", 1, 1, 2), "conv5", 1, 1, 2)
    x = functional.max_pool2d(x, 3, 2).flatten(1)
    return _dense(p, torch.relu_(_dense(p, torch.relu_(_dense(p, x, "fc6")), "fc7")), "fc8")


def mobilenet_v2(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    def conv(x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        return functional.relu6(_conv_norm(p, x, name, f"{name}.bn", stride, training), inplace=True)

    x = conv(x, "features.0.0", 2)
    position = 1
    for count, first in ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)):
        for i in range(count):
            name, stride = f"features.{position}", first if i == 0 else 1
            y = conv(x, f"{name}.expand", 1) if f"{name}.expand.weight" in p else x
            w = p[f"{name}.depthwise.weight"]
            y = functional.conv2d(y, w, None, stride, 1, 1, w.shape[0])
            y = functional.relu6(_norm(p, y, f"{name}.depthwise.bn", training), inplace=True)
            y = _conv_norm(p, y, f"{name}.project", f"{name}.project.bn", 1, training)
            x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
            position += 1
    x = conv(x, f"features.{position}.0", 1)
    return _dense(p, functional.adaptive_avg_pool2d(x, 1).flatten(1), "classifier.1")


_HEADS = 8


def transformer_encoder(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    x = functional.embedding(x, p["embedding.weight"]) + p["positions.weight"]
    n, length, size = x.shape
    i = 0
    while f"layer{i}.fc1.weight" in p:
        name = f"layer{i}"
        y = _dense(p, _layer_norm(p, x, f"{name}.norm1"), f"{name}.attention.qkv")
        query, key, value = y.view(n, length, 3, _HEADS, size // _HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(query, key, value)
        x = x + _dense(p, y.transpose(1, 2).reshape(n, length, size), f"{name}.attention.output")
        y = functional.gelu(_dense(p, _layer_norm(p, x, f"{name}.norm2"), f"{name}.fc1"))
        x = x + _dense(p, y, f"{name}.fc2")
        i += 1
    return _dense(p, _layer_norm(p, x, "norm").mean(1), "fc")


def lstm_classifier(p: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    x = functional.embedding(x, p["embedding.weight"])
    start = x.new_zeros(1, x.shape[0], p["lstm.recurrent_weight"].shape[1])
    flat = [p["lstm.weight"], p["lstm.recurrent_weight"], p["lstm.input_bias"], p["lstm.recurrent_bias"]]
    # what torch.nn.LSTM(batch_first=True) calls
    _, last, _ = torch.lstm(x, (start, start), flat, True, 1, 0.0, training, False, True)
    return _dense(p, last[0], "fc")


NETWORKS: Mapping[str, Forward] = {
    "alexnet": alexnet,
    "lenet5": lenet5,
    "lstm_classifier": lstm_classifier,
    "mlp": mlp,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet,
    "resnet20": resnet20,
    "resnet50": resnet,
    "textcnn": textcnn,
    "transformer_encoder": transformer_encoder,
}


def convert(name: str, weights: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Onward's parameters in the layouts that torch's operators want."""
    found = {key: array for key, array in weights.items() if array.ndim and array.dtype == np.float32}
    if name == "transformer_encoder":
        return _convert_transformer(found)
    if name == "lstm_classifier":
        return _convert_lstm(found)
    if name == "textcnn":
        return {key: a[:, :, None] if a.ndim == 3 else a for key, a in found.items()}
    return found


def _convert_transformer(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Products with [in, out] become linear layers with [out, in]; query, key and value become one."""
    result = {}
    for key, array in weights.items():
        stem, _, kind = key.rpartition("_" if ".attention." in key else ".")
        if stem.endswith(("query", "key", "value")):
            continue
        turned = array.T if kind == "weight" and (stem.endswith((".output", ".fc1", ".fc2"))) else array
        result[f"{stem}.{kind}"] = turned
    i = 0
    while f"layer{i}.attention.query_weight" in weights:
        stem = f"layer{i}.attention"
        parts = [f"{stem}.{role}" for role in ("query", "key", "value")]
        result[f"{stem}.qkv.weight"] = np.concatenate([weights[f"{part}_weight"].T for part in parts])
        result[f"{stem}.qkv.bias"] = np.concatenate([weights[f"{part}_bias"] for part in parts])
        i += 1
    return result


def _convert_lstm(weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """ONNX orders the gates i, o, f, c; torch i, f, c, o."""

    def order(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        i, o, f, c = np.split(array, 4)
        return np.concatenate([i, f, c, o])

    result = dict(weights)
    bias = np.split(result.pop("lstm.bias")[0], 2)
    result["lstm.weight"] = order(weights["lstm.weight"][0])
    result["lstm.recurrent_weight"] = order(weights["lstm.recurrent_weight"][0])
    result["lstm.input_bias"], result["lstm.recurrent_bias"] = map(order, bias)
    return result

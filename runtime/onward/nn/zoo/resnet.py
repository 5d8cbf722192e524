"""Residual networks. Layer names are torchvision's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from onward.errors import ConfigError
from onward.nn.layers import (
    Add,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    GlobalAveragePool,
    MaxPool2D,
    Pad,
    ReLU,
)
from onward.nn.network import Model
from onward.nn.trace import Input, Tensor
from onward.nn.zoo._registry import register, scaled

__all__ = ["resnet18", "resnet20", "resnet50"]

_Block: TypeAlias = Callable[[Tensor, int, int, str], Tensor]
_EXPANSION = 4


@register
def resnet18(
    num_classes: int = 1000,
    *,
    image_size: int = 224,
    channels: int = 3,
    width: float = 1.0,
    seed: int = 0,
) -> Model:
    """ResNet-18: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, table 1, with projection shortcuts where the shape
    changes (option B).

    Args:
        num_classes: outputs.
        image_size: height and width.
        channels: of the image.
        width: factor of the channels.
        seed: decides the first parameters.
    """
    return _imagenet("resnet18", _basic, (2, 2, 2, 2), num_classes, image_size, channels, width, seed)


@register
def resnet50(
    num_classes: int = 1000,
    *,
    image_size: int = 224,
    channels: int = 3,
    width: float = 1.0,
    seed: int = 0,
) -> Model:
    """ResNet-50: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, table 1, with projection shortcuts where the shape
    changes (option B). Deviation: a block that halves the image does so in its 3x3 convolution, as is
    common ("v1.5"); the paper does it in the first 1x1. The parameters are the same.

    Args:
        num_classes: outputs.
        image_size: height and width.
        channels: of the image.
        width: factor of the channels.
        seed: decides the first parameters.
    """
    return _imagenet("resnet50", _bottleneck, (3, 4, 6, 3), num_classes, image_size, channels, width, seed)


@register
def resnet20(
    num_classes: int = 10,
    *,
    image_size: int = 32,
    channels: int = 3,
    width: float = 1.0,
    shortcut: Literal["A", "B"] = "A",
    seed: int = 0,
) -> Model:
    """ResNet-20 for small images: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, section 4.2, n = 3.

    Args:
        num_classes: outputs.
        image_size: height and width.
        channels: of the image.
        width: factor of the channels 16, 32, 64.
        shortcut: where the shape changes, "A" takes every second cell and adds channels of zeros, as the
            paper does here; "B" projects.
        seed: decides the first parameters.
    """
    if shortcut not in ("A", "B"):
        raise ConfigError(f"network 'resnet20': shortcut is A or B, got {shortcut!r}")
    block = _basic_padded if shortcut == "A" else _basic
    source = Input((channels, image_size, image_size))
    x = _conv_norm(source, scaled(16, width), 3, 1, "conv1", "bn1", activation=True)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for i in range(3):
            x = block(x, scaled(filters, width), 2 if stage > 1 and i == 0 else 1, f"layer{stage}.{i}")
    x = GlobalAveragePool(name="avgpool")(x)
    return Model(source, Dense(num_classes, name="fc")(x), name="resnet20", seed=seed)


def _imagenet(
    name: str,
    block: _Block,
    depths: Sequence[int],
    num_classes: int,
    image_size: int,
    channels: int,
    width: float,
    seed: int,
) -> Model:
    source = Input((channels, image_size, image_size))
    x = _conv_norm(source, scaled(64, width), 7, 2, "conv1", "bn1", activation=True)
    x = MaxPool2D(3, 2, padding=1, name="maxpool")(x)
    for stage, depth in enumerate(depths, start=1):
        filters = scaled(64 * 2 ** (stage - 1), width)
        for i in range(depth):
            x = block(x, filters, 2 if stage > 1 and i == 0 else 1, f"layer{stage}.{i}")
    x = GlobalAveragePool(name="avgpool")(x)
    return Model(source, Dense(num_classes, name="fc")(x), name=name, seed=seed)


def _basic(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    return _join(_basic_branch(x, filters, stride, name), _projected(x, filters, stride, name), name)


def _basic_padded(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    """A basic block whose shortcut has no parameters (option A)."""
    y = _basic_branch(x, filters, stride, name)
    if stride != 1:
        x = AveragePool2D(1, stride, name=f"{name}.downsample.0")(x)
    missing = filters - _channels(x)
    if missing:
        pads = [(missing // 2, missing - missing // 2), (0, 0), (0, 0)]
        x = Pad(pads, name=f"{name}.downsample.1")(x)
    return _join(y, x, name)


def _bottleneck(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    y = _conv_norm(x, filters, 1, 1, f"{name}.conv1", f"{name}.bn1", activation=True)
    y = _conv_norm(y, filters, 3, stride, f"{name}.conv2", f"{name}.bn2", activation=True)
    y = _conv_norm(y, filters * _EXPANSION, 1, 1, f"{name}.conv3", f"{name}.bn3")
    return _join(y, _projected(x, filters * _EXPANSION, stride, name), name)


def _basic_branch(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    y = _conv_norm(x, filters, 3, stride, f"{name}.conv1", f"{name}.bn1", activation=True)
    return _conv_norm(y, filters, 3, 1, f"{name}.conv2", f"{name}.bn2")


def _projected(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    if stride == 1 and _channels(x) == filters:
        return x
    return _conv_norm(x, filters, 1, stride, f"{name}.downsample.0", f"{name}.downsample.1")


def _join(y: Tensor, shortcut: Tensor, name: str) -> Tensor:
    return ReLU(name=f"{name}.relu")(Add(name=f"{name}.add")(y, shortcut))


def _conv_norm(
    x: Tensor, filters: int, kernel: int, stride: int, conv: str, norm: str, activation: bool = False
) -> Tensor:
    """Convolution without bias, padded by half its kernel, and batch normalisation."""
    x = Conv2D(filters, kernel, stride, kernel // 2, bias=False, weight_initializer="he_normal", name=conv)(x)
    x = BatchNorm(name=norm)(x)
    return ReLU(name=f"{norm}.relu")(x) if activation else x


def _channels(x: Tensor) -> int:
    channels = x.shape[1]
    assert isinstance(channels, int)
    return channels

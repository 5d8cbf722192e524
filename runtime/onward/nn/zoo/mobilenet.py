"""MobileNetV2."""

from __future__ import annotations

from onward.nn.layers import (
    Add,
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    GlobalAveragePool,
    ReLU6,
)
from onward.nn.network import Model
from onward.nn.trace import Input, Tensor
from onward.nn.zoo._registry import register, scaled

__all__ = ["mobilenet_v2"]

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and the first block's stride: table 2 of the paper."""


@register
def mobilenet_v2(
    num_classes: int = 1000,
    *,
    image_size: int = 224,
    channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.2,
    seed: int = 0,
) -> Model:
    """MobileNetV2: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: Sandler et al. 2018, arXiv:1801.04381, table 2; channels are multiples of 8 as in the authors'
    code. Deviation: the last layer is Dense after global pooling in place of a 1x1 convolution, which is
    the same function; dropout before it as in common use.

    Args:
        num_classes: outputs.
        image_size: height and width.
        channels: of the image.
        width: factor of the channels; the last convolution keeps 1280 unless it is above 1.
        dropout: the share that is dropped before the last layer.
        seed: decides the first parameters.
    """
    source = Input((channels, image_size, image_size))
    x = _conv(source, scaled(32, width, 8), 3, 2, "features.0.0")
    position = 1
    for expansion, filters, blocks, stride in _STAGES:
        for i in range(blocks):
            x = _inverted_residual(
                x, expansion, scaled(filters, width, 8), stride if i == 0 else 1, f"features.{position}"
            )
            position += 1
    x = _conv(x, scaled(1280, max(1.0, width), 8), 1, 1, f"features.{position}.0")
    x = GlobalAveragePool(name="avgpool")(x)
    x = Dropout(dropout, name="classifier.0")(x)
    return Model(source, Dense(num_classes, name="classifier.1")(x), name="mobilenet_v2", seed=seed)


def _inverted_residual(x: Tensor, expansion: int, filters: int, stride: int, name: str) -> Tensor:
    before = x.shape[1]
    assert isinstance(before, int)
    y = x
    if expansion != 1:
        y = _conv(y, before * expansion, 1, 1, f"{name}.expand")
    y = DepthwiseConv2D(3, stride, 1, bias=False, weight_initializer="he_normal", name=f"{name}.depthwise")(y)
    y = ReLU6(name=f"{name}.depthwise.relu6")(BatchNorm(name=f"{name}.depthwise.bn")(y))
    y = Conv2D(filters, 1, bias=False, weight_initializer="he_normal", name=f"{name}.project")(y)
    y = BatchNorm(name=f"{name}.project.bn")(y)
    return Add(name=f"{name}.add")(x, y) if stride == 1 and before == filters else y


def _conv(x: Tensor, filters: int, kernel: int, stride: int, name: str) -> Tensor:
    """Convolution without bias, batch normalisation and ReLU6."""
    x = Conv2D(filters, kernel, stride, kernel // 2, bias=False, weight_initializer="he_normal", name=name)(x)
    return ReLU6(name=f"{name}.relu6")(BatchNorm(name=f"{name}.bn")(x))

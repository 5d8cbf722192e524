"""VGG."""

from __future__ import annotations

from onward.nn.layer import Layer
from onward.nn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D
from onward.nn.network import Sequential
from onward.nn.zoo._registry import register, scaled

__all__ = ["vgg11"]

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@register
def vgg11(
    num_classes: int = 1000,
    *,
    image_size: int = 224,
    channels: int = 3,
    width: float = 1.0,
    hidden: int = 4096,
    dropout: float = 0.5,
    seed: int = 0,
) -> Sequential:
    """VGG with 11 weight layers: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: Simonyan & Zisserman 2014, arXiv:1409.1556, configuration A. Deviation: He initialisation, with
    which it trains from scratch.

    Args:
        num_classes: outputs.
        image_size: height and width; at least 32.
        channels: of the image.
        width: factor of the convolutions' channels.
        hidden: units of the two hidden dense layers.
        dropout: the share that is dropped after each hidden dense layer.
        seed: decides the first parameters.
    """
    layers: list[Layer] = []
    for stage, filters in enumerate(_STAGES, start=1):
        for i, count in enumerate(filters, start=1):
            layers.append(
                Conv2D(
                    scaled(count, width),
                    3,
                    padding=1,
                    activation="relu",
                    weight_initializer="he_normal",
                    name=f"conv{stage}_{i}",
                )
            )
        layers.append(MaxPool2D(2, name=f"pool{stage}"))
    layers.append(Flatten(name="flatten"))
    for i in (6, 7):
        layers.append(Dense(hidden, "relu", weight_initializer="he_normal", name=f"fc{i}"))
        layers.append(Dropout(dropout, name=f"drop{i}"))
    layers.append(Dense(num_classes, name="fc8"))
    return Sequential(layers, input_shape=(channels, image_size, image_size), name="vgg11", seed=seed)

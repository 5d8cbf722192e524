"""LeNet-5."""

from __future__ import annotations

from typing import Literal

from onward.errors import ConfigError
from onward.nn.layer import Layer
from onward.nn.layers import AveragePool2D, Conv2D, Dense, Flatten, MaxPool2D
from onward.nn.network import Sequential
from onward.nn.zoo._registry import register

__all__ = ["lenet5"]

_VALID_FROM = 12


@register
def lenet5(
    num_classes: int = 10,
    *,
    image_size: int = 28,
    channels: int = 1,
    activation: str = "relu",
    pooling: Literal["max", "average"] = "max",
    seed: int = 0,
) -> Sequential:
    """LeNet-5: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition".
    Deviations: ReLU and max pooling as in common use (`activation="tanh", pooling="average"` for 1998's);
    pooling has no parameters; the second convolution sees all maps of the first; logits in place of radial
    basis functions; 28x28 images are padded by 2 in the first convolution instead of being given as 32x32.
    Images below 12x12 are padded in the second convolution too, since nothing would be left of them.

    Args:
        num_classes: outputs.
        image_size: height and width; at least 4.
        channels: of the image.
        activation: the name of the activation after each hidden layer.
        pooling: "max" or "average".
        seed: decides the first parameters.
    """
    if pooling not in ("max", "average"):
        raise ConfigError(f"network 'lenet5': pooling is max or average, got {pooling!r}")
    weights = "he_normal" if activation == "relu" else "glorot_uniform"

    def pool(name: str) -> Layer:
        return MaxPool2D(2, name=name) if pooling == "max" else AveragePool2D(2, name=name)

    def conv(filters: int, padding: int, name: str) -> Layer:
        return Conv2D(
            filters, 5, padding=padding, activation=activation, weight_initializer=weights, name=name
        )

    return Sequential(
        [
            conv(6, 2, "conv1"),
            pool("pool1"),
            conv(16, 0 if image_size >= _VALID_FROM else 2, "conv2"),
            pool("pool2"),
            Flatten(name="flatten"),
            Dense(120, activation, weight_initializer=weights, name="fc1"),
            Dense(84, activation, weight_initializer=weights, name="fc2"),
            Dense(num_classes, name="fc3"),
        ],
        input_shape=(channels, image_size, image_size),
        name="lenet5",
        seed=seed,
    )

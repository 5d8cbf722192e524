"""AlexNet."""

from __future__ import annotations

from onward.nn.layers import Conv2D, Dense, Dropout, Flatten, LocalResponseNorm, MaxPool2D
from onward.nn.network import Sequential
from onward.nn.zoo._registry import register, scaled

__all__ = ["alexnet"]


@register
def alexnet(
    num_classes: int = 1000,
    *,
    image_size: int = 227,
    channels: int = 3,
    width: float = 1.0,
    dropout: float = 0.5,
    seed: int = 0,
) -> Sequential:
    """AlexNet with its two groups: [N, channels, image_size, image_size] -> logits [N, num_classes].

    Source: Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural
    networks": convolutions 2, 4 and 5 in two groups, overlapping 3x3 pooling with stride 2, local response
    normalisation (n = 5, alpha = 1e-4, beta = 0.75, k = 2), dropout. Deviations: images of 227x227, which
    is what the paper's arithmetic needs (it says 224); He initialisation in place of a fixed deviation of
    0.01 with biases of 1; both groups in one model.

    Args:
        num_classes: outputs.
        image_size: height and width; at least 67.
        channels: of the image.
        width: factor of the channels and hidden units.
        dropout: the share that is dropped before the two hidden dense layers.
        seed: decides the first parameters.
    """

    def conv(
        name: str, filters: int, kernel: int, strides: int = 1, padding: int = 0, groups: int = 1
    ) -> Conv2D:
        return Conv2D(
            scaled(filters, width, 2),
            kernel,
            strides,
            padding,
            groups=groups,
            activation="relu",
            weight_initializer="he_normal",
            name=name,
        )

    def norm(name: str) -> LocalResponseNorm:
        # ONNX divides alpha by size, the paper does not
        return LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, bias=2.0, name=name)

    def hidden(name: str) -> Dense:
        return Dense(scaled(4096, width), "relu", weight_initializer="he_normal", name=name)

    return Sequential(
        [
            conv("conv1", 96, 11, strides=4),
            norm("norm1"),
            MaxPool2D(3, 2, name="pool1"),
            conv("conv2", 256, 5, padding=2, groups=2),
            norm("norm2"),
            MaxPool2D(3, 2, name="pool2"),
            conv("conv3", 384, 3, padding=1),
            conv("conv4", 384, 3, padding=1, groups=2),
            conv("conv5", 256, 3, padding=1, groups=2),
            MaxPool2D(3, 2, name="pool5"),
            Flatten(name="flatten"),
            Dropout(dropout, name="drop6"),
            hidden("fc6"),
            Dropout(dropout, name="drop7"),
            hidden("fc7"),
            Dense(num_classes, name="fc8"),
        ],
        input_shape=(channels, image_size, image_size),
        name="alexnet",
        seed=seed,
    )

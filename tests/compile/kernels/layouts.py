"""Layouts that only tests use."""

from __future__ import annotations

from onward.compile.kernels.layout import Image, Weights

__all__ = ["hwio", "image_strides", "nchw_strides"]


def hwio(inputs: int, outputs: int, width: int) -> Weights:
    """Rows, columns, input channels of a group, output channels of all groups."""
    return Weights(1, outputs, width * inputs * outputs, inputs * outputs)


def image_strides(image: Image) -> tuple[int, int, int, int]:
    """Strides of [batch, channel, row, column] in a channels-last image; it starts at `image.origin`."""
    return image.size, 1, image.row, image.pixel


def nchw_strides(image: Image) -> tuple[int, int, int, int]:
    """Strides of [batch, channel, row, column] in ONNX's own layout of the same image, without a border."""
    plane = image.height * image.width
    return image.channels * plane, plane, image.width, 1

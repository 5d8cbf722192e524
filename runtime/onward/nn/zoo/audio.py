"""Classifiers of sounds: log-mel spectrograms [N, bands, frames] in, logits out."""

from __future__ import annotations

from onward.nn.layer import Layer
from onward.nn.layers import BatchNorm, Conv1D, Dense, Dropout, GlobalAveragePool, MaxPool1D, ReLU
from onward.nn.network import Sequential
from onward.nn.zoo._registry import register

__all__ = ["audiocnn"]

_POOLED_FROM = 4


@register
def audiocnn(
    num_classes: int = 2,
    *,
    bands: int = 40,
    frames: int = 98,
    filters: int = 64,
    blocks: int = 3,
    dropout: float = 0.3,
    seed: int = 0,
) -> Sequential:
    """Convolutions over time, mean over time: [N, bands, frames] -> logits [N, num_classes].

    Blocks of a convolution over 3 frames with batch normalization and ReLU, halved in time by maximum while
    there are at least 4 frames; the bands are the channels of the first.

    Source: S. Dieleman and B. Schrauwen, "End-to-end learning for music audio", ICASSP 2014, who convolve
    spectrograms over time; batch normalization is added.

    Args:
        num_classes: outputs.
        bands: of the spectrogram.
        frames: of the spectrogram.
        filters: of each convolution.
        blocks: how many there are.
        dropout: the share that is dropped before the last layer.
        seed: decides the first parameters.
    """
    layers: list[Layer] = []
    left = frames
    for number in range(1, blocks + 1):
        layers += [
            Conv1D(filters, 3, padding=1, bias=False, weight_initializer="he_normal", name=f"conv{number}"),
            BatchNorm(name=f"norm{number}"),
            ReLU(name=f"relu{number}"),
        ]
        if left >= _POOLED_FROM:
            layers.append(MaxPool1D(2, name=f"pool{number}"))
            left //= 2
    layers += [
        GlobalAveragePool(name="mean"),
        Dropout(dropout, name="dropout"),
        Dense(num_classes, name="fc"),
    ]
    return Sequential(layers, input_shape=(bands, frames), name="audiocnn", seed=seed)

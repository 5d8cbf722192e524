from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Op, numpy_dtype, op

_LARGEST = 1 << 28
"""Elements above are refused before memory is taken."""


@op("MelWeightMatrix", since=17)
class MelWeightMatrix(Op):
    """A matrix [dft_length // 2 + 1, num_mel_bins] that adds a spectrum's bins up to the mel scale's.

    Each mel bin is a triangle between its neighbours' centres; mel = 2595 · log10(1 + hertz / 700).
    """

    static_operands = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")

    output_datatype: int = int(ir.DataType.FLOAT)

    def kernel(
        self,
        num_mel_bins: Array,
        dft_length: Array,
        sample_rate: Array,
        lower_edge_hertz: Array,
        upper_edge_hertz: Array,
    ) -> Array:
        bins, length, rate = (int(x.reshape(-1)[0]) for x in (num_mel_bins, dft_length, sample_rate))
        low, high = (float(x.reshape(-1)[0]) for x in (lower_edge_hertz, upper_edge_hertz))
        rows = length // 2 + 1
        if bins < 0 or length < 0 or rate < 1 or rows * bins > _LARGEST:
            raise ShapeError(f"{bins} mel bins, a DFT of length {length}, a sample rate of {rate}")
        edges = np.array([low, high])
        first, last = 2595 * np.log10(1 + edges / 700)
        mels = first + np.arange(bins + 2) * (last - first) / (bins + 2)
        hertz = 700 * (10 ** (mels / 2595) - 1)
        places = ((length + 1) * hertz // rate).astype(np.int64)
        left, centre, right = places[:-2], places[1:-1], places[2:]
        row = np.arange(rows)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            rising = np.where(left == centre, 1.0, (row - left) / (centre - left))
            falling = (right - row) / (right - centre)
        weights = np.where((row >= left) & (row <= centre), rising, 0.0)
        weights = np.where((row >= centre) & (row < right), falling, weights)
        return weights.astype(numpy_dtype(ir.DataType(self.output_datatype)))

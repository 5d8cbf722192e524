"""Layers with Keras's names, arguments, defaults and weight layouts."""

from onward.keras.layers.base import Layer
from onward.keras.layers.convolution import Conv1D, Conv2D, Conv2DTranspose, DepthwiseConv2D, SeparableConv2D
from onward.keras.layers.dense import Dense, Embedding
from onward.keras.layers.elementwise import ELU, Activation, Dropout, LeakyReLU, ReLU, Rescaling, Softmax
from onward.keras.layers.merging import Add, Concatenate
from onward.keras.layers.normalization import BatchNormalization, LayerNormalization
from onward.keras.layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
    ZeroPadding2D,
)
from onward.keras.layers.recurrent import LSTM, Bidirectional
from onward.keras.layers.shape import Flatten, Permute, Reshape
from onward.keras.tensors import Input

__all__ = [
    "ELU",
    "LSTM",
    "Activation",
    "Add",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Concatenate",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Input",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "MaxPooling1D",
    "MaxPooling2D",
    "Permute",
    "ReLU",
    "Rescaling",
    "Reshape",
    "SeparableConv2D",
    "Softmax",
    "ZeroPadding2D",
]

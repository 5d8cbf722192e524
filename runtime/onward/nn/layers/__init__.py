"""The layers, a module a family."""

from onward.nn.layers._window import Ints, Padding
from onward.nn.layers.activation import (
    ELU,
    GELU,
    SELU,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from onward.nn.layers.attention import PositionEmbedding, SelfAttention
from onward.nn.layers.conv import Conv1D, Conv2D, ConvTranspose2D, DepthwiseConv2D
from onward.nn.layers.dense import Dense, Embedding
from onward.nn.layers.norm import BatchNorm, Dropout, GroupNorm, LayerNorm, LocalResponseNorm
from onward.nn.layers.pool import (
    AveragePool1D,
    AveragePool2D,
    GlobalAveragePool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
)
from onward.nn.layers.recurrent import LSTM
from onward.nn.layers.rescale import Rescale
from onward.nn.layers.shape import Add, Concat, Flatten, Pad, Reshape, Select, Transpose

__all__ = [
    "ELU",
    "GELU",
    "LSTM",
    "SELU",
    "Add",
    "AveragePool1D",
    "AveragePool2D",
    "BatchNorm",
    "Concat",
    "Conv1D",
    "Conv2D",
    "ConvTranspose2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNorm",
    "HardSwish",
    "Ints",
    "LayerNorm",
    "LeakyReLU",
    "LocalResponseNorm",
    "MaxPool1D",
    "MaxPool2D",
    "PReLU",
    "Pad",
    "Padding",
    "PositionEmbedding",
    "ReLU",
    "ReLU6",
    "Rescale",
    "Reshape",
    "Select",
    "SelfAttention",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Transpose",
]

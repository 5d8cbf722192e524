"""Text classifiers: token ids int64 [N, length] in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

from onward.nn.initializers import Uniform
from onward.nn.layers import (
    LSTM,
    Add,
    Concat,
    Conv1D,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePool,
    GlobalMaxPool,
    LayerNorm,
    PositionEmbedding,
    SelfAttention,
    Transpose,
)
from onward.nn.network import Model, Sequential
from onward.nn.trace import Input
from onward.nn.zoo._registry import register

__all__ = ["lstm_classifier", "textcnn", "transformer_encoder"]


@register
def textcnn(
    num_classes: int = 2,
    *,
    vocabulary_size: int = 20_000,
    length: int | str = 64,
    embedding_size: int = 300,
    filters: int = 100,
    widths: Sequence[int] = (3, 4, 5),
    dropout: float = 0.5,
    seed: int = 0,
) -> Model:
    """Convolutions over word vectors, maximum over time: int64 [N, length] -> logits [N, num_classes].

    Source: Kim 2014, arXiv:1408.5882, the variant with random vectors (CNN-rand), uniform in [-0.25, 0.25).
    Deviation: the norm of the last layer's weights is not bound to 3; use weight decay.

    Args:
        num_classes: outputs.
        vocabulary_size: ids are in [0, vocabulary_size).
        length: tokens a sample, at least the widest window; a string leaves it open under that name.
        embedding_size: the length of a word vector.
        filters: of each width.
        widths: of the windows, in tokens.
        dropout: the share that is dropped before the last layer.
        seed: decides the first parameters.
    """
    source = Input((length,), "int64")
    x = Embedding(vocabulary_size, embedding_size, weight_initializer=Uniform(-0.25, 0.25), name="embedding")(
        source
    )
    x = Transpose((0, 2, 1), name="transpose")(x)
    pooled = [
        GlobalMaxPool(name=f"pool{width}")(
            Conv1D(filters, width, activation="relu", weight_initializer="he_normal", name=f"conv{width}")(x)
        )
        for width in widths
    ]
    x = Concat(name="concat")(pooled) if len(pooled) > 1 else pooled[0]
    x = Dropout(dropout, name="dropout")(x)
    return Model(source, Dense(num_classes, name="fc")(x), name="textcnn", seed=seed)


@register
def transformer_encoder(
    num_classes: int = 2,
    *,
    vocabulary_size: int = 20_000,
    length: int = 128,
    layers: int = 4,
    size: int = 256,
    heads: int = 8,
    hidden: int = 1024,
    dropout: float = 0.1,
    seed: int = 0,
) -> Model:
    """Transformer encoder, mean over tokens: int64 [N, length] -> logits [N, num_classes].

    Source: Vaswani et al. 2017, arXiv:1706.03762. Deviations: normalisation before each part instead of
    after it (Xiong et al. 2020, arXiv:2002.04745), GELU, learned positions, no mask.

    Args:
        num_classes: outputs.
        vocabulary_size: ids are in [0, vocabulary_size).
        length: tokens a sample.
        layers: encoder layers.
        size: features a token; divides into heads.
        heads: of the attention.
        hidden: units of the feed-forward parts.
        dropout: the share that is dropped at the end of each part.
        seed: decides the first parameters.
    """
    source = Input((length,), "int64")
    x = Embedding(vocabulary_size, size, weight_initializer=Uniform(-0.05, 0.05), name="embedding")(source)
    x = PositionEmbedding(name="positions")(x)
    for i in range(layers):
        y = LayerNorm(name=f"layer{i}.norm1")(x)
        y = SelfAttention(heads, name=f"layer{i}.attention")(y)
        y = Dropout(dropout, name=f"layer{i}.dropout1")(y)
        x = Add(name=f"layer{i}.add1")(x, y)
        y = LayerNorm(name=f"layer{i}.norm2")(x)
        y = Dense(hidden, "gelu", name=f"layer{i}.fc1")(y)
        y = Dense(size, name=f"layer{i}.fc2")(y)
        y = Dropout(dropout, name=f"layer{i}.dropout2")(y)
        x = Add(name=f"layer{i}.add2")(x, y)
    x = LayerNorm(name="norm")(x)
    x = GlobalAveragePool(name="mean")(Transpose((0, 2, 1), name="transpose")(x))
    return Model(source, Dense(num_classes, name="fc")(x), name="transformer_encoder", seed=seed)


@register
def lstm_classifier(
    num_classes: int = 2,
    *,
    vocabulary_size: int = 20_000,
    length: int | str = 64,
    embedding_size: int = 128,
    units: int = 128,
    bidirectional: bool = False,
    dropout: float = 0.5,
    seed: int = 0,
) -> Sequential:
    """The last state of an LSTM over word vectors: int64 [N, length] -> logits [N, num_classes].

    Source: Hochreiter & Schmidhuber 1997, "Long short-term memory", with forget gates (Gers et al. 2000).

    Args:
        num_classes: outputs.
        vocabulary_size: ids are in [0, vocabulary_size).
        length: tokens a sample; a string leaves it open under that name.
        embedding_size: the length of a word vector.
        units: of the LSTM, in each direction.
        bidirectional: whether a second LSTM reads backwards.
        dropout: the share that is dropped before the last layer.
        seed: decides the first parameters.
    """
    return Sequential(
        [
            Embedding(
                vocabulary_size, embedding_size, weight_initializer=Uniform(-0.05, 0.05), name="embedding"
            ),
            LSTM(units, bidirectional, name="lstm"),
            Dropout(dropout, name="dropout"),
            Dense(num_classes, name="fc"),
        ],
        input_shape=(length,),
        input_dtype="int64",
        name="lstm_classifier",
        seed=seed,
    )

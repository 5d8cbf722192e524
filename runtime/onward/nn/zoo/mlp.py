"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from onward.errors import ConfigError
from onward.nn.layers import Concat, Dense, Dropout, Embedding, Flatten, Rescale, Reshape, Select
from onward.nn.network import Model, Sequential
from onward.nn.trace import Input
from onward.nn.zoo._registry import register

__all__ = ["mlp"]


@register
def mlp(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (784,),
    hidden: Sequence[int] = (128, 64),
    activation: str = "relu",
    dropout: float = 0.0,
    embedded: Sequence[Sequence[int]] = (),
    output_scale: Sequence[float] = (),
    output_mean: Sequence[float] = (),
    seed: int = 0,
) -> Sequential | Model:
    """Dense layers with an activation between them: [N, *input_shape] -> logits [N, num_classes].

    Source: Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors". Here
    with ReLU and He initialisation.

    Args:
        num_classes: outputs.
        input_shape: the shape of one sample; more than one axis is flattened.
        hidden: units of the hidden layers.
        activation: the name of the activation between layers.
        dropout: the share that is dropped after each hidden layer.
        embedded: the first so many features are whole numbers: for each how many there are, and how long a
            vector stands for one.
        output_scale, output_mean: what outputs are multiplied by, and then added; constants.
        seed: decides the first parameters.
    """
    layers: list[Flatten | Dense | Dropout | Rescale] = [Flatten()] if len(input_shape) > 1 else []
    for units in hidden:
        layers.append(Dense(units, activation, weight_initializer="he_normal"))
        if dropout:
            layers.append(Dropout(dropout))
    layers.append(Dense(num_classes))
    if output_scale or output_mean:
        layers.append(Rescale(tuple(output_scale) or (1.0,), tuple(output_mean) or (0.0,)))
    if not embedded:
        return Sequential(layers, input_shape=input_shape, name="mlp", seed=seed)
    if len(input_shape) != 1 or input_shape[0] < len(embedded):
        raise ConfigError(f"mlp: {len(embedded)} embedded features need an input [N, C], not {input_shape}")
    source = Input(input_shape)
    parts = [
        Reshape((size,))(Embedding(count, size)(Select(i, i + 1, ids=True)(source)))
        for i, (count, size) in enumerate(embedded)
    ]
    if input_shape[0] > len(embedded):
        parts.append(Select(len(embedded), input_shape[0])(source))
    x = Concat()(*parts) if len(parts) > 1 else parts[0]
    for layer in layers:
        x = layer(x)
    return Model(source, x, name="mlp", seed=seed)

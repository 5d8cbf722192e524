"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from onward.nn.layers import Dense, Flatten
from onward.nn.network import Sequential
from onward.nn.zoo._registry import register

__all__ = ["mlp"]


@register
def mlp(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (784,),
    hidden: Sequence[int] = (128, 64),
    activation: str = "relu",
    seed: int = 0,
) -> Sequential:
    """Dense layers with an activation between them: [N, *input_shape] -> logits [N, num_classes].

    Source: Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors". Here
    with ReLU and He initialisation.

    Args:
        num_classes: outputs.
        input_shape: the shape of one sample; more than one axis is flattened.
        hidden: units of the hidden layers.
        activation: the name of the activation between layers.
        seed: decides the first parameters.
    """
    layers = [Dense(units, activation, weight_initializer="he_normal") for units in hidden]
    return Sequential(
        [*([Flatten()] if len(input_shape) > 1 else []), *layers, Dense(num_classes)],
        input_shape=input_shape,
        name="mlp",
        seed=seed,
    )

"""Functions of gradients between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward import verify
from onward.autodiff import Clip, GradientTransform, training_step
from onward.errors import ConfigError
from onward.graph import Builder
from onward.train import SGD, Adam, CrossEntropy, Trainer

Gradients = Mapping[str, ir.Value]


def halve_biases(g: Builder, gradients: Gradients) -> Gradients:
    return {name: g.Mul(d, 0.5) if name.endswith(".bias") else d for name, d in gradients.items()}


class Centralized:
    """Subtracts from each matrix's gradient its mean over inputs: H. Yong et al., ECCV 2020."""

    def __call__(self, g: Builder, gradients: Gradients) -> Gradients:
        return {
            name: g.Sub(d, g.ReduceMean(d, [1], keepdims=1))
            if d.shape is not None and len(d.shape) == 2
            else d
            for name, d in gradients.items()
        }


def updated(*transforms: GradientTransform, **options) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By how much an SGD step of rate 1 lowers each parameter, and the gradients."""
    start = Trainer(networks.mlp())
    trainer = Trainer(
        networks.mlp(), optimizer=SGD(learning_rate=1.0), gradient_transforms=transforms, **options
    )
    x, y = networks.blobs(12)
    trainer.fit((x, y), batch_size=12)
    moved = {name: start.weights()[name] - array for name, array in trainer.weights().items()}
    plain = Trainer(networks.mlp(), optimizer=SGD(learning_rate=1.0))
    plain.fit((x, y), batch_size=12)
    return moved, {name: start.weights()[name] - array for name, array in plain.weights().items()}


def test_a_function_on_the_graph_changes_the_update() -> None:
    moved, gradients = updated(halve_biases, Centralized())
    for name, d in gradients.items():
        expected = d / 2 if name.endswith(".bias") else d - d.mean(1, keepdims=True)
        np.testing.assert_allclose(moved[name], expected, rtol=1e-4, atol=1e-6)


def test_transforms_go_in_order_and_clipping_comes_last() -> None:
    def scaled(factor: float) -> GradientTransform:
        return lambda g, gradients: {name: g.Mul(d, factor) for name, d in gradients.items()}

    first, gradients = updated(Clip(norm=0.1), scaled(100.0))
    norm = np.sqrt(sum(np.sum(d**2) for d in gradients.values()))
    assert norm > 0.1
    for name, d in gradients.items():
        np.testing.assert_allclose(first[name], 10 * d / norm, rtol=1e-3, atol=1e-5)
    last, _ = updated(scaled(100.0), clip=Clip(norm=0.1))
    assert np.sqrt(sum(np.sum(d**2) for d in last.values())) == pytest.approx(0.1, rel=1e-3)


def test_they_see_the_mean_of_a_window() -> None:
    """Clipping by value does not commute with the mean: whole and in parts agree only if it comes after."""
    x, y = networks.blobs(30)

    def trained(size: int, accumulate: int) -> dict[str, np.ndarray]:
        trainer = Trainer(
            networks.mlp(),
            optimizer=SGD(learning_rate=0.5),
            gradient_transforms=[Clip(value=0.02), halve_biases],
            accumulate=accumulate,
            seed=3,
        )
        trainer.fit((x, y), batch_size=size, epochs=2)
        return trainer.weights()

    whole, parts = trained(30, 1), trained(7, 5)
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-6)


def test_the_transformed_step_runs_in_onnxruntime() -> None:
    verify.compare_training(
        networks.mlp(),
        optimizer=Adam(),
        gradient_transforms=[halve_biases, Centralized()],
        clip=Clip(norm=0.5),
        batch=6,
    ).raise_if_failed()


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (lambda g, d: {}, "<lambda> gives no gradient of 'out.weight'; it has to return one for each name"),
        (lambda g, d: None, "gives no gradient of 'out.weight'"),
        (
            lambda g, d: dict.fromkeys(d, 0.5),
            "the gradient of 'out.weight' is a float, not a value of the graph",
        ),
        (
            lambda g, d: {n: g.ReduceSum(v, keepdims=0) for n, v in d.items()},
            r"'out.weight' is float\[\], the parameter is float\[3, 8\]",
        ),
        (
            lambda g, d: {n: g.Cast(v, to=int(ir.DataType.DOUBLE)) for n, v in d.items()},
            r"'out.weight' is double\[3, 8\], the parameter is float\[3, 8\]",
        ),
    ],
)
def test_what_is_no_gradient_is_refused(transform: GradientTransform, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        training_step(
            networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.weight"], gradient_transforms=[transform]
        )

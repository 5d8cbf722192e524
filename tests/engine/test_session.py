from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward.engine import Session
from onward.errors import InputError
from onward.model import save


def batch(seed: int = 0, n: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)}


def test_a_file_and_a_model_give_the_same(tmp_path: Path) -> None:
    save(networks.mlp(), tmp_path / "mlp.onnx")
    loaded, direct = Session(tmp_path / "mlp.onnx"), Session(networks.mlp())
    assert [str(s) for s in loaded.inputs + loaded.outputs] == ["x: float32[N, 4]", "scores: float32[N, 3]"]
    np.testing.assert_array_equal(loaded.run(batch())["scores"], direct.run(batch())["scores"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input 'x' is missing; expected x: float32\[N, 4\]"),
        ({"x": np.ones((2, 4))}, "input 'x': expected dtype float32, got float64"),
        ({"x": np.ones((2, 5), np.float32)}, r"expected x: float32\[N, 4\], got shape \[2, 5\]"),
        ({"x": np.ones(4, np.float32)}, r"got shape \[4\]"),
        ({"x": [[1.0] * 4]}, "expected a NumPy array, got list"),
        ({**batch(), "y": np.ones(1)}, "no input named 'y'; the inputs are x"),
        ({**batch(), "out.bias": np.ones(3, np.float32)}, "no input named 'out.bias'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session(networks.mlp()).run(inputs)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(InputError, match="no output named 'score'; the outputs are scores"):
        Session(networks.mlp()).run(batch(), ["score"])


def test_weights_that_are_listed_as_inputs_are_weights() -> None:
    """Files of IR version 3 list every initializer among the inputs."""
    model = networks.mlp()
    expected = Session(model).run(batch())["scores"]
    model.graph.inputs.extend(model.graph.initializers.values())
    session = Session(model)
    assert [s.name for s in session.inputs] == ["x"]
    np.testing.assert_array_equal(session.run(batch())["scores"], expected)


def test_loaded_weights_count_from_the_next_run_on() -> None:
    session = Session(networks.mlp())
    session.load_weights(
        {"out.weight": np.zeros((3, 8), np.float32), "out.bias": np.arange(3, dtype=np.float32)}
    )
    np.testing.assert_array_equal(session.run(batch())["scores"], [[0, 1, 2]] * 3)


def test_weights_that_do_not_fit_change_nothing() -> None:
    session = Session(networks.mlp())
    before = session.run(batch())["scores"]
    zeros = {"out.weight": np.zeros((3, 8), np.float32)}
    for wrong, message in (
        ({"out.bais": np.zeros(3, np.float32)}, "no weight named 'out.bais'"),
        (
            {"out.bias": np.zeros(4, np.float32)},
            r"weight 'out.bias': expected float32\[3\], got float32\[4\]",
        ),
        ({"out.bias": np.zeros(3)}, r"expected float32\[3\], got float64\[3\]"),
    ):
        with pytest.raises(InputError, match=message):
            session.load_weights({**zeros, **wrong})
    np.testing.assert_array_equal(session.run(batch())["scores"], before)


def test_threads_share_a_session() -> None:
    session = Session(networks.norm_net())
    images = np.random.default_rng(0).standard_normal((40, 2, 1, 6, 6)).astype(np.float32)
    expected = [session.run({"image": image})["scores"] for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: session.run({"image": image})["scores"], images))
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_model_is_an_onnx_ir_model_or_a_path() -> None:
    assert isinstance(networks.mlp(), ir.Model)
    with pytest.raises(Exception, match="nowhere"):
        Session("nowhere.onnx")

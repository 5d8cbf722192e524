from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from onward import data, nn
from onward.engine import Session
from onward.errors import ConfigError, DataError, InvalidModelError
from onward.model import from_bytes, to_bytes
from onward.passes import detach_preparation, prepend_preparation


def images(dtype: type = np.uint8, channels: int = 3) -> data.Dataset:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, channels, 8, 8))
    pixels[:, 0] //= 4
    return data.Dataset({"input": pixels.astype(dtype)}, np.arange(12) % 2)


def network(channels: int = 3) -> nn.Network:
    layers = [nn.Conv2D(4, 3, activation="relu"), nn.Flatten(), nn.Dense(2)]
    return nn.Sequential(layers, input_shape=(channels, 8, 8), name="small")


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, np.bool_])
def test_the_graph_does_what_the_preparation_does(dtype: type, normalise: bool) -> None:
    found, model = images(dtype), network().model
    preparation = data.Preparation.fit(found, normalise=normalise)
    whole = prepend_preparation(model, preparation)
    raw = found.inputs["input"].astype(whole.graph.inputs[0].dtype.numpy())  # type: ignore[union-attr]
    prepared = preparation.apply(found).inputs["input"]
    assert prepared.dtype == np.float32
    expected = Session(model).run({"input": prepared})["output"]
    np.testing.assert_allclose(Session(whole).run({"input": raw})["output"], expected, rtol=1e-5, atol=1e-5)
    other = onnxruntime.InferenceSession(to_bytes(whole), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(other.run(None, {"input": raw})[0], expected, rtol=1e-4, atol=1e-4)
    assert {n.op_type for n in whole.graph} - {n.op_type for n in model.graph} <= {"Cast", "Div", "Sub"}


def test_bytes_of_images_are_pixels_and_other_numbers_are_not() -> None:
    pixels = data.Preparation.fit(images(), normalise=False).numbers["input"]
    assert (pixels.dtype, pixels.divisor) == (np.uint8, 255)
    numbers = data.Preparation.fit(images(np.int32), normalise=False).numbers["input"]
    assert (numbers.dtype, numbers.divisor) == (np.int32, 1)
    table = data.Dataset({"x": np.arange(6, dtype=np.uint8).reshape(3, 2)}, np.arange(3))
    assert data.Preparation.fit(table, normalise=False).numbers["x"].divisor == 1


def test_several_inputs_are_prepared_each_by_its_own() -> None:
    rng = np.random.default_rng(0)
    a, b = nn.Input((3,), name="a"), nn.Input((2,), name="b")
    model = nn.Model([a, b], nn.Dense(1)(nn.Concat(1)(a, b)), name="two").model
    found = data.Dataset(
        {"a": rng.normal(5, 2, (20, 3)).astype(np.float32), "b": rng.integers(0, 90, (20, 2))},
        np.arange(20) % 2,
    )
    preparation = data.Preparation.fit(found)
    prepared = preparation.apply(found)
    for name in ("a", "b"):
        np.testing.assert_allclose(prepared.inputs[name].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(prepared.inputs[name].std(axis=0), 1, atol=1e-4)
    whole = prepend_preparation(model, preparation)
    got = Session(whole).run(dict(found.inputs))
    expected = Session(model).run(dict(prepared.inputs))
    np.testing.assert_allclose(next(iter(got.values())), next(iter(expected.values())), rtol=1e-5, atol=1e-6)


def test_detaching_gives_the_network_back() -> None:
    found, model = images(), network().model
    preparation = data.Preparation.fit(found)
    stored = from_bytes(to_bytes(prepend_preparation(model, preparation)))
    back = detach_preparation(stored, ["input"])
    assert [n.op_type for n in back.graph] == [n.op_type for n in model.graph]
    assert list(back.graph.initializers) == list(model.graph.initializers)
    assert str(back.graph.inputs[0].dtype) == "FLOAT"
    x = preparation.apply(found).inputs["input"]
    np.testing.assert_array_equal(
        Session(back).run({"input": x})["output"], Session(model).run({"input": x})["output"]
    )
    with pytest.raises(InvalidModelError, match="another tool has changed the file"):
        detach_preparation(model, ["input"])


def test_json_reads_back_without_loss() -> None:
    preparation = data.Preparation.fit(images())
    again = data.Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    np.testing.assert_array_equal(
        again.apply(images()).inputs["input"], preparation.apply(images()).inputs["input"]
    )


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"inputs": {"x": {"dtype": "nothing", "divisor": 1}}},
        {"inputs": {"x": {"dtype": "uint8", "divisor": 0}}},
        {"inputs": {"x": {"dtype": "uint8", "divisor": 1, "mean": [0]}}},
        {"inputs": {"x": {"dtype": "uint8", "divisor": 1, "mean": [0], "std": [0]}}},
        {"inputs": {}, "columns": [1]},
        {"inputs": {}, "text": {"tokens": 0, "words": "unicode"}},
        {"inputs": {}, "text": {"tokens": 4, "words": "unicode"}},
    ],
)
def test_other_json_is_refused(content: object) -> None:
    with pytest.raises(DataError):
        data.Preparation.from_json(content)


def test_what_does_not_fit_is_refused() -> None:
    preparation = data.Preparation.fit(images(channels=1))
    with pytest.raises(ConfigError, match="has 3 channels, its normalisation 1"):
        prepend_preparation(network().model, preparation)
    with pytest.raises(ConfigError, match="the model takes input"):
        prepend_preparation(network(1).model, preparation.renamed({"input": "other"}))
    whole = prepend_preparation(network(1).model, preparation)
    with pytest.raises(ConfigError, match="not floats"):
        prepend_preparation(whole, preparation)
    with pytest.raises(DataError, match="pixels of 0 … 255"):
        preparation.apply(
            data.Dataset({"input": np.full((2, 1, 8, 8), 0.5, np.float32)}, np.zeros(2, np.int64))
        )

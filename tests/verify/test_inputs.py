from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import InputError
from onward.verify import random_inputs


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]>' + text)
    )


TWO = parsed(
    "agraph (float[N, T] a, float16[N, T] b, bool[N] c, uint8[N, 3, ?, ?] d) => (float[N, T] y)"
    "{ y = Identity(a) }"
)


def test_dtypes_and_shared_dimensions():
    drawn = random_inputs(TWO, batch=3)
    assert {name: x.dtype.name for name, x in drawn.items()} == {
        "a": "float32",
        "b": "float16",
        "c": "bool",
        "d": "uint8",
    }
    assert [x.shape for x in drawn.values()] == [(3, 16), (3, 16), (3,), (3, 3, 32, 32)]
    assert drawn["d"].max() > 200


def test_equal_seeds_draw_equal_inputs():
    first, again, other = (random_inputs(TWO, seed=s) for s in (1, 1, 2))
    assert all((first[k] == again[k]).all() for k in first)
    assert (first["a"] != other["a"]).any()


def test_dimensions_and_ranges_given():
    drawn = random_inputs(TWO, dims={"T": 5, "d:2": 8}, ranges={"a": (2.0, 3.0), "d": (0, 2)})
    assert drawn["b"].shape == (2, 5)
    assert drawn["d"].shape == (2, 3, 8, 32)
    assert drawn["a"].min() >= 2
    assert drawn["a"].max() <= 3
    assert set(np.unique(drawn["d"])) == {0, 1}


def test_given_arrays_bind_dimensions():
    a = np.zeros((4, 7), np.float32)
    drawn = random_inputs(TWO, given={"a": a})
    assert drawn["a"] is a
    assert drawn["b"].shape == (4, 7)
    assert drawn["c"].shape == (4,)


def test_contradicting_arrays_are_refused():
    with pytest.raises(InputError, match=r"'b'.*'T' is 6 here and 7"):
        random_inputs(TWO, given={"a": np.zeros((4, 7), np.float32), "b": np.zeros((4, 6), np.float16)})


def test_indices_stay_within_the_table():
    model = parsed(
        """agraph (int64[N, 40] ids) => (float[N, 40, 2] y)
        <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
            narrow = Cast<to = 6>(ids)
            y = Gather<axis = 0>(table, narrow)
        }"""
    )
    assert set(np.unique(random_inputs(model, batch=4)["ids"])) == {0, 1, 2}


def test_indices_into_a_table_of_unknown_extent_are_zero():
    model = parsed("agraph (float[K] t, int64[N] ids) => (float[N] y) { y = Gather(t, ids) }")
    assert not random_inputs(model, batch=50)["ids"].any()


def test_labels_of_a_loss_stay_within_the_classes():
    model = parsed(
        """agraph (float[N, 4] x, int64[N] t) => (float y)
        { y = SoftmaxCrossEntropyLoss<reduction = "mean">(x, t) }"""
    )
    assert set(np.unique(random_inputs(model, batch=100)["t"])) == {0, 1, 2, 3}


def test_inputs_with_a_default_are_left_out():
    model = parsed("agraph (float[N] x, float[1] k) => (float[N] y) <float[1] k = {2}> { y = Mul(x, k) }")
    assert [v.name for v in model.graph.inputs] == ["x", "k"]
    assert list(random_inputs(model)) == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": {"q": np.zeros(1)}}, "no input named 'q'"),
        ({"ranges": {"q": (0, 1)}}, "no input named 'q'"),
        ({"ranges": {"a": (1.0, 1.0)}}, "range 1.0 … 1.0 is empty"),
        ({"dims": {"q": 1}}, "no input has a dimension 'q'"),
    ],
)
def test_unknown_names_and_empty_ranges_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        random_inputs(TWO, **options)


def test_what_cannot_be_drawn_is_refused():
    model = parsed("agraph (string[N] s) => (string[N] y) { y = Identity(s) }")
    with pytest.raises(InputError, match=r"'s'.*give the array"):
        random_inputs(model)

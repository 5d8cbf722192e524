from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onward.nn
from onward import nn
from onward.errors import ConfigError, ShapeError


def test_sequential_is_an_onnx_model() -> None:
    network = nn.Sequential(
        [nn.Conv2D(4, 3, activation="relu"), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(10)],
        input_shape=(1, 8, 8),
        name="small",
    )
    assert isinstance(network, nn.Network)
    assert isinstance(network.model, ir.Model)
    assert network.model.ir_version == 10
    assert dict(network.model.graph.opset_imports) == {"": 21}
    assert network.name == "small"
    assert [str(spec) for spec in network.inputs] == ["input: float32[N, 1, 8, 8]"]
    assert [str(spec) for spec in network.outputs] == ["output: float32[N, 10]"]
    assert [node.name for node in network.model.graph] == [
        "conv2d_1/Conv",
        "conv2d_1/Relu",
        "maxpool2d_1/MaxPool",
        "flatten_1/Flatten",
        "dense_1/Gemm",
    ]
    shapes = {name: array.shape for name, array in network.parameters.items()}
    assert shapes == {
        "conv2d_1.weight": (4, 1, 3, 3),
        "conv2d_1.bias": (4,),
        "dense_1.weight": (10, 36),
        "dense_1.bias": (10,),
    }


def test_sequential_takes_functions_from_handle_to_handle() -> None:
    def residual(x: nn.Tensor) -> nn.Tensor:
        return nn.Add()(x, nn.Dense(4)(x))

    network = nn.Sequential([residual, residual], input_shape=(4,))
    assert sorted(network.model.graph.initializers) == [
        "dense_1.bias",
        "dense_1.weight",
        "dense_2.bias",
        "dense_2.weight",
    ]


def test_several_inputs_and_outputs(run: Any) -> None:
    image, ids = nn.Input((1, 6, 6), name="image"), nn.Input((3,), "int64", name="ids")
    seen = nn.Flatten()(nn.Conv2D(2, 3)(image))
    read = nn.Flatten()(nn.Embedding(9, 4)(ids))
    joined = nn.Concat()(nn.Dense(5)(seen), nn.Dense(5)(read))
    network = nn.Model([image, ids], {"logits": nn.Dense(3)(joined), "features": joined}, name="two")
    assert [spec.name for spec in network.inputs] == ["image", "ids"]
    assert [spec.name for spec in network.outputs] == ["logits", "features"]
    # both branches had a first dense layer of their own before they met
    assert {n for n in network.model.graph.initializers if n.startswith("dense")} == {
        f"dense_{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")
    }
    rng = np.random.default_rng(0)
    logits, features = run(
        network, rng.normal(size=(3, 1, 6, 6)).astype(np.float32), rng.integers(0, 9, (3, 3))
    )
    weight = network.parameters["dense_3.weight"]
    np.testing.assert_allclose(logits, features @ weight.T, rtol=1e-4, atol=1e-5)


def test_default_names_of_several_inputs_and_outputs() -> None:
    a, b = nn.Input((2,)), nn.Input((2,))
    network = nn.Model([a, b], [nn.Add()(a, b), nn.ReLU()(b)])
    assert [s.name for s in network.inputs] == ["input_1", "input_2"]
    assert [s.name for s in network.outputs] == ["output_1", "output_2"]


def test_a_layer_called_twice_shares_its_parameters(run: Any) -> None:
    a, b = nn.Input((4,), name="a"), nn.Input((4,), name="b")
    shared = nn.Dense(3)
    network = nn.Model([a, b], [shared(a), shared(b)])
    assert sorted(network.model.graph.initializers) == ["dense_1.bias", "dense_1.weight"]
    assert [n.name for n in network.model.graph] == ["dense_1/Gemm", "dense_1/Gemm_1"]
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    first, second = run(network, x, x)
    np.testing.assert_array_equal(first, second)

    c = nn.Input((4,))
    chained = nn.Dense(4)
    twice = nn.Model(c, chained(chained(c)))
    assert len(twice.model.graph.initializers) == 2


def test_layers_that_are_equal_do_not_share() -> None:
    network = nn.Sequential([nn.Dense(4), nn.Dense(4)], input_shape=(4,))
    assert len(network.model.graph.initializers) == 4


def test_a_shared_layer_refuses_an_input_that_needs_other_parameters() -> None:
    shared = nn.Dense(3)
    a = nn.Input((4,))
    shared(a)
    with pytest.raises(ShapeError, match=r"shared parameter dense_1.weight is float\[3, 4\].*float\[3, 3\]"):
        shared(shared(a))
    b, c = nn.Input((4,)), nn.Input((5,))
    other = nn.Dense(3)
    with pytest.raises(ShapeError, match="shared parameter"):
        nn.Model([b, c], [other(b), other(c)])


def test_handles_stay_usable_for_other_models(run: Any) -> None:
    x = nn.Input((4,))
    hidden = nn.Dense(3, name="hidden")(x)
    encoder = nn.Model(x, hidden, seed=5)
    whole = nn.Model(x, nn.Dense(2, name="head")(hidden), seed=5)
    assert sorted(encoder.model.graph.initializers) == ["hidden.bias", "hidden.weight"]
    np.testing.assert_array_equal(
        encoder.parameters["hidden.weight"],
        whole.parameters["hidden.weight"],
    )
    run(encoder, np.zeros((1, 4), np.float32))
    run(whole, np.zeros((1, 4), np.float32))


def test_an_output_may_be_used_inside_and_twice(run: Any) -> None:
    x = nn.Input((4,))
    y = nn.ReLU()(x)
    network = nn.Model(x, {"y": y, "z": nn.Tanh()(y), "again": y, "same": x})
    data = np.array([[-1.0, 0.0, 1.0, 2.0]], np.float32)
    first, second, third, same = run(network, data)
    np.testing.assert_array_equal(first, np.maximum(data, 0))
    np.testing.assert_allclose(second, np.tanh(first), rtol=1e-5)
    np.testing.assert_array_equal(third, first)
    np.testing.assert_array_equal(same, data)


def test_a_refused_layer_leaves_no_trace(run: Any) -> None:
    x = nn.Input((4,))
    with pytest.raises(ShapeError):
        nn.Conv2D(3, 3, name="c")(x)
    network = nn.Model(x, nn.Dense(3, name="c")(x))
    assert [n.name for n in network.model.graph] == ["c/Gemm"]


def test_open_extents(run: Any) -> None:
    network = nn.Sequential(
        [nn.Embedding(9, 4), nn.Transpose((0, 2, 1)), nn.Conv1D(5, 3), nn.GlobalMaxPool(), nn.Dense(2)],
        input_shape=("T",),
        input_dtype="int64",
    )
    assert network.inputs[0].shape == ("N", "T")
    for length in (3, 8):
        assert run(network, np.zeros((2, length), np.int64))[0].shape == (2, 2)


def test_a_fixed_batch() -> None:
    x = nn.Input((4,), batch=8)
    assert nn.Model(x, nn.Dense(3)(x)).outputs[0].shape == (8, 3)


def test_a_handle_tells_its_type() -> None:
    x = nn.Input((4,), "float16", name="x")
    assert x.shape == ("N", 4)
    assert x.dtype == np.float16
    assert repr(x) == "Tensor(x: float16[N, 4])"


def test_models_are_pure_functions_of_their_description() -> None:
    def network() -> bytes:
        return ir.to_proto(nn.zoo.lenet5(seed=3).model).SerializeToString()

    assert network() == network()


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: nn.Sequential([], input_shape=(3,)), "needs at least one layer"),
        (lambda: nn.Sequential([nn.ReLU()], input_shape=(0,)), "positive ints or symbolic names, got 0"),
        (lambda: nn.Sequential([nn.ReLU()], input_shape=(3,), input_dtype="real"), "unknown dtype 'real'"),
        (
            lambda: nn.Sequential([nn.ReLU()], input_shape=(3,), seed=-1),
            "seed must be an int that is not neg",
        ),
        (lambda: nn.Sequential([nn.ReLU()], input_shape=(3,), name="a/b"), "got 'a/b'"),
        (
            lambda: nn.Sequential([nn.ReLU(name="a"), nn.ReLU(name="a")], input_shape=(3,)),
            "two layers are called 'a'",
        ),
        (lambda: nn.Sequential([nn.ReLU(name="a/b")], input_shape=(3,)), "layer ReLU: a name has letters"),
        (lambda: nn.ReLU()(), "layer ReLU: is called on no input"),
        (lambda: nn.ReLU()(np.zeros(3)), "is called on handles"),  # type: ignore[arg-type]
        (lambda: nn.Input((3,), name=""), "a name has letters"),
    ],
)
def test_bad_descriptions(make: Any, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fragment in str(caught.value)


def test_models_whose_ends_do_not_meet() -> None:
    a, b = nn.Input((2,), name="a"), nn.Input((2,), name="b")
    both = nn.Add()(a, b)
    with pytest.raises(ConfigError, match="depends on the input 'b', which is not among the inputs"):
        nn.Model(a, both)
    with pytest.raises(ConfigError, match="the input 'b' reaches no output"):
        nn.Model([a, b], nn.ReLU()(a))
    with pytest.raises(ConfigError, match=r"inputs come from nn\.Input"):
        nn.Model([both], nn.ReLU()(both))
    with pytest.raises(ConfigError, match="listed twice"):
        nn.Model([a, a, b], both)
    with pytest.raises(ConfigError, match="two tensors are called 'a'"):
        nn.Model([a, b], {"a": both})
    with pytest.raises(ConfigError, match="at least one input and one output"):
        nn.Model([], [])
    c = nn.Input((2,), name="d.weight")
    with pytest.raises(ConfigError, match=r"'d\.weight' names an input and a parameter"):
        nn.Model(c, nn.Dense(2, name="d")(c))


def test_given_names_meet_across_branches() -> None:
    a, b = nn.Input((2,)), nn.Input((2,))
    with pytest.raises(ConfigError, match="two layers are called 'x'"):
        nn.Model([a, b], nn.Add()(nn.ReLU(name="x")(a), nn.ReLU(name="x")(b)))
    a, b = nn.Input((2,)), nn.Input((2,))
    named = nn.Model([a, b], nn.Add()(nn.ReLU()(a), nn.ReLU(name="relu_1")(b)))
    assert [n.name for n in named.model.graph] == ["relu_2/Relu", "relu_1/Relu", "add_1/Add"]


def test_public_names_exist_and_have_docstrings() -> None:
    for name in onward.nn.__all__:
        assert getattr(onward.nn, name).__doc__ or name in ("Ints", "Padding"), name
    assert sorted(set(onward.nn.__all__)) == sorted(onward.nn.__all__)
    assert set(onward.nn.layers.__all__) <= set(onward.nn.__all__)

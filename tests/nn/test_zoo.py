from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onward import nn
from onward.errors import ConfigError, ShapeError
from onward.nn import zoo

SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"num_classes": 5, "image_size": 67, "width": 0.05},
    "audiocnn": {"bands": 8, "frames": 12, "filters": 6},
    "lenet5": {},
    "lstm_classifier": {"vocabulary_size": 30, "length": 6, "embedding_size": 5, "units": 4},
    "mlp": {"input_shape": (1, 8, 8)},
    "mobilenet_v2": {"num_classes": 5, "image_size": 33, "width": 0.25},
    "resnet18": {"num_classes": 5, "image_size": 32, "width": 0.1},
    "resnet20": {"image_size": 12, "width": 0.5},
    "resnet50": {"num_classes": 5, "image_size": 33, "width": 0.1},
    "textcnn": {"vocabulary_size": 30, "length": 9, "embedding_size": 6, "filters": 4},
    "transformer_encoder": {
        "vocabulary_size": 30,
        "length": 6,
        "layers": 2,
        "size": 8,
        "heads": 2,
        "hidden": 12,
    },
    "vgg11": {"num_classes": 5, "image_size": 32, "width": 0.1, "hidden": 20},
}

PUBLISHED = {
    "alexnet": (60_965_224, 724_406_816),
    "lenet5": (61_706, 416_520),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet20": (269_722, 40_551_040),
    "resnet50": (25_557_032, 4_089_184_256),
    "vgg11": (132_863_336, 7_609_090_048),
}
"""Parameters and multiply-accumulates: torchvision's tables (0.30, 1.81, 4.09 and 7.61 GMACs), the Caffe
model zoo's AlexNet, LeCun 1998 with 32x32 images; ResNet-20's are counted by hand from the paper's table."""


@pytest.mark.parametrize("name", zoo.names())
def test_network_runs_as_it_stands(run: Any, name: str) -> None:
    network = zoo.build(name, **SMALL[name])
    (spec,) = network.inputs
    rng = np.random.default_rng(0)
    shape = (3, *(d for d in (spec.shape or ())[1:] if isinstance(d, int)))
    batch = rng.integers(0, 30, shape) if spec.dtype == np.int64 else rng.normal(size=shape)
    batch = batch.astype(spec.dtype)
    (logits,) = run(network, batch)
    assert logits.shape == (3, (network.outputs[0].shape or ())[-1])
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    np.testing.assert_allclose(run(network, batch[:1])[0], logits[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    summary = zoo.build(name).summary()
    assert (summary.parameters, summary.macs) == PUBLISHED[name]


def test_networks_keep_the_scale_of_their_input(run: Any) -> None:
    """He initialisation: activations neither die nor explode through the depth of a plain network."""
    network = zoo.vgg11(num_classes=50, image_size=32, width=0.25, hidden=128)
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    assert 0.1 < run(network, x)[0].std() < 10


def test_lenet5_in_its_variants(run: Any) -> None:
    original = zoo.lenet5(activation="tanh", pooling="average")
    operators = [node.op_type for node in original.model.graph]
    assert operators.count("Tanh") == 4
    assert operators.count("AveragePool") == 2
    for size, features in ((8, 64), (12, 16), (28, 400)):
        network = zoo.lenet5(image_size=size)
        assert network.parameters["fc1.weight"].shape[1] == features
        assert run(network, np.zeros((2, 1, size, size), np.float32))[0].shape == (2, 10)


def test_alexnet_is_the_papers() -> None:
    nodes = {node.name: node for node in zoo.alexnet().model.graph}
    assert [nodes[f"conv{i}/Conv"].attributes.get_int("group", 1) for i in range(1, 6)] == [1, 2, 1, 2, 2]
    pool = nodes["pool1/MaxPool"].attributes
    assert tuple(pool["kernel_shape"].value) == (3, 3)
    assert tuple(pool["strides"].value) == (2, 2)
    norm = nodes["norm1/LRN"].attributes
    assert norm["alpha"].value / norm["size"].value == pytest.approx(1e-4)
    assert [n for n in nodes if n and n.endswith("Dropout")] == ["drop6/Dropout", "drop7/Dropout"]


def test_resnet20_shortcuts(run: Any) -> None:
    plain, projected = zoo.resnet20(), zoo.resnet20(shortcut="B")
    assert not [n for n in plain.model.graph.initializers if "downsample" in n]
    assert [n for n in projected.model.graph.initializers if "downsample.0.weight" in n]
    assert run(projected, np.zeros((1, 3, 32, 32), np.float32))[0].shape == (1, 10)


def test_text_networks_with_open_length(run: Any) -> None:
    for name in ("textcnn", "lstm_classifier"):
        network = zoo.build(name, **SMALL[name] | {"length": "T"})
        for length in (5, 11):
            assert run(network, np.ones((2, length), np.int64))[0].shape == (2, 2)


def test_options_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown network 'resnet19'; the zoo has alexnet"):
        zoo.build("resnet19")
    with pytest.raises(ConfigError, match=r"'lenet5' has no option 'widht'; it has num_classes"):
        zoo.build("lenet5", widht=2)
    with pytest.raises(ConfigError, match="option 'pooling': input should be 'max' or 'average'; got 'min'"):
        zoo.build("lenet5", pooling="min")
    with pytest.raises(ConfigError, match="option 'shortcut': input should be 'A' or 'B'"):
        zoo.build("resnet20", shortcut="C")
    with pytest.raises(ShapeError, match=r"layer 'pool5' \(MaxPool2D\)"):
        zoo.build("alexnet", image_size=64)
    with pytest.raises(ConfigError, match=r"layer 'fc3' \(Dense\): units must be a positive int"):
        zoo.build("lenet5", num_classes=0)


def test_every_network_cites_its_source_and_every_small_one_is_tested() -> None:
    assert set(zoo.names()) == set(SMALL)
    for name in zoo.names():
        assert "Source: " in (getattr(nn.zoo, name).__doc__ or ""), name


def test_seed_and_names() -> None:
    def weight(seed: int) -> np.ndarray[Any, Any]:
        return zoo.resnet18(image_size=32, width=0.1, seed=seed).parameters["layer1.0.conv1.weight"]

    np.testing.assert_array_equal(weight(1), weight(1))
    assert (weight(1) != weight(2)).all()

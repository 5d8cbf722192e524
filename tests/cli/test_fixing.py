"""`--shapes` and `--constants`: what a file leaves open is said where the file is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.cli.conftest import Onward

from onward.errors import ConfigError
from onward.model import load
from onward.runs.fixing import fixed, parsed

N, FLOAT, INT64 = "N", TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that looks at its rate: 4 numbers of x are used at 8000, all 8 else; x's extent is open."""
    rng = np.random.default_rng(0)
    make, info = helper.make_node, helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [make("Slice", ["x", "zero", end, "one"], [out])], out, [], [info(out, FLOAT, [N, None])]
        )
        for end, out in (("four", "narrow"), ("eight", "wide"))
    ]
    nodes = [
        make("Equal", ["rate", "low"], ["is_low"]),
        make("If", ["is_low"], ["part"], then_branch=branches[0], else_branch=branches[1]),
        make("Pad", ["part", "pads"], ["padded"]),
        make("Slice", ["padded", "zero", "eight", "one"], ["fixed"]),
        make("MatMul", ["fixed", "weight"], ["scores"]),
    ]
    numbers = {"zero": [0], "one": [1], "four": [4], "eight": [8], "pads": [0, 0, 0, 8]}
    weights = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()]
    weights.append(numpy_helper.from_array(np.int64(8000), "low"))
    weights.append(numpy_helper.from_array(rng.standard_normal((8, 3)).astype(np.float32), "weight"))
    graph = helper.make_graph(
        nodes,
        "speech",
        [info("x", FLOAT, [N, "T"]), info("rate", INT64, [])],
        [info("scores", FLOAT, [N, 3])],
        weights,
    )
    path = tmp_path_factory.mktemp("speech") / "speech.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((120, 8)).astype(np.float32)
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, x=x, y=(x[:, :3]).argmax(1))
    return path


FIXED = ("--shapes", "x=N,8", "--constants", "rate=8000")


def test_training_and_what_is_written(onward: Onward, speech: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained.onnx"
    refused = onward("train", speech, "--data", f"npz:{samples}", "--target", "y", "--output", out)
    assert refused.code == 2
    assert "'rate'" in refused.err
    done = onward(
        "train", speech, "--data", f"npz:{samples}", "--target", "y", "--epochs", 3, "--output", out, *FIXED
    )
    assert done.code == 0, done.err
    model = load(out)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert "If" not in {node.op_type for node in model.graph}
    assert onward("predict", out, samples).code in (0, 2)  # samples.npz has y too
    assert json.loads(onward("inspect", out, "--train", "--json").out)["trains"]


def test_inspect_plans_what_is_fixed(onward: Onward, speech: Path) -> None:
    plan = json.loads(onward("inspect", speech, "--plan", "--json", *FIXED).out)
    assert plan["inputs"] == {"x": [1, 8]}
    assert plan["static"]


@pytest.mark.parametrize(("rate", "used"), [(8000, 4), (16000, 8)])
def test_predict_and_export(onward: Onward, speech: Path, tmp_path: Path, rate: int, used: int) -> None:
    x = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    weight = numpy_helper.to_array(onnx.load(speech).graph.initializer[-1])
    expected = x[:, :used] @ weight[:used]
    done = onward(
        *("predict", speech, tmp_path / "x.npy", "--constants", f"rate={rate}"),
        *("--output", tmp_path / "y.npz"),
    )
    assert done.code == 0, done.err
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["scores"], expected, rtol=1e-5, atol=1e-6)
    out = tmp_path / "fixed.onnx"
    assert onward("export", speech, out, "--constants", f"rate={rate}").code == 0
    assert [v.name for v in load(out).graph.inputs] == ["x"]


def test_convert_and_verify(onward: Onward, speech: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32))
    done = onward(
        *("convert", speech, tmp_path / "half.onnx", "--to", "float16"),
        *("--inputs", tmp_path / "x.npz", *FIXED),
    )
    assert done.code == 0, done.err
    assert onward("verify", speech, "--backward", *FIXED).code == 0


def test_contents_come_from_files_and_lists(speech: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rate.npy", np.int64(8000))
    model = load(speech)
    for given in (8000, str(tmp_path / "rate.npy")):
        assert "If" not in {n.op_type for n in fixed(model, None, {"rate": given}).graph}
    shaped = fixed(model, {"x": [None, 8]}).graph.inputs[0].shape
    assert shaped is not None
    assert shaped[1] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "y=1,2"], "a shape is given for 'y', but the inputs are x, rate"),
        (["--shapes", "x=1,2,3"], r"shape \[1, 2, 3\] does not fit input 'x'"),
        (["--shapes", "x"], "--shapes 'x': NAME=VALUE is needed"),
        (["--shapes", "x=1.5,8"], "neither a number nor a name|does not fit"),
        (["--constants", "rate=fast"], "'rate'"),
        (["--constants", "rate=0.5"], "'rate'"),
        (["--constants", "rate=[1,2]"], "input 'rate': expected"),
        (["--constants", "rate=none.npy"], "none.npy cannot be read"),
        (["--constants", "speed=3"], "contents are given for 'speed', but the inputs are x, rate"),
    ],
)
def test_what_does_not_fit_is_refused(onward: Onward, speech: Path, options: list[str], message: str) -> None:
    import re

    done = onward("inspect", speech, *options)
    assert done.code == 2
    assert re.search(message, done.err), done.err


def test_a_network_of_the_zoo_has_nothing_to_fix(onward: Onward) -> None:
    done = onward("train", "mlp", "--data", "iris", "--constants", "rate=1")
    assert done.code == 2
    assert "are for .onnx files" in done.err


def test_a_name_that_comes_twice() -> None:
    with pytest.raises(ConfigError, match="'x' is given twice"):
        parsed("--shapes", ["x=1", "x=2"])


@pytest.mark.parametrize("axis", [("1",), ("x=1", "y=-2")])
def test_samples_along_another_axis(onward: Onward, tmp_path: Path, axis: tuple[str, ...]) -> None:
    """A file of sequences [T, N, F] is trained on samples [N, T, F], and written so."""
    rng = np.random.default_rng(0)
    info, make = helper.make_tensor_value_info, helper.make_node
    graph = helper.make_graph(
        [
            make("RNN", ["x", "w", "r"], ["states", "last"], hidden_size=6),
            make("Squeeze", ["states", "one"], ["flat"]),
            make("MatMul", ["flat", "v"], ["y"]),
        ],
        "time_major",
        [info("x", FLOAT, [9, N, 3])],
        [info("y", FLOAT, [9, N, 2])],
        [
            *(
                numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)
                for name, shape in (("w", (1, 6, 3)), ("r", (1, 6, 6)), ("v", (6, 2)))
            ),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    file, out = tmp_path / "rnn.onnx", tmp_path / "trained.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    x = rng.standard_normal((80, 9, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[..., 0] > 0).astype(np.int64))
    common = ("train", file, "--data", f"npz:{tmp_path / 'data.npz'}", "--epochs", 4, "--lr", 0.05)
    chosen = [part for text in axis for part in ("--sample-axis", text)]
    done = onward(*common, "--optimizer", "adam", "--output", out, *chosen)
    assert done.code == 0, done.err
    assert [list(v.shape or ()) for v in load(out).graph.inputs] == [["N", 9, 3]]
    assert "accuracy" in done.out
    wrong = onward(*common, "--output", out, "--overwrite", "--sample-axis", "x=T")
    assert wrong.code == 2
    assert "--sample-axis x=T" in wrong.err
    missing = onward(*common, "--output", out, "--overwrite", "--sample-axis", "z=1")
    assert missing.code == 2
    assert "'z'" in missing.err

"""`onward convert`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.cli.conftest import Onward

from onward.model import load, read_provenance

FORMS = (
    ("--to", "float16"),
    ("--to", "float16", "--keep-io"),
    ("--to", "bfloat16"),
    ("--weights", "int8"),
    ("--weights", "int4", "--block", 32),
    ("--quantize", "static"),
    ("--quantize", "static", "--calibration", "entropy"),
    ("--quantize", "static", "--calibration", "percentile", "--activations", "int8"),
    ("--quantize", "dynamic"),
    ("--opset", 13),
)


@pytest.fixture(scope="module")
def digits(onward: Onward, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network, trained on digits."""
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    done = onward("train", "lenet5", "--data", "digits", "--epochs", 3, "--lr", 0.005, "--output", path)
    assert done.code == 0, done.err
    return path


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(str(x).strip("-") for x in f))
def test_every_form_scores_as_the_original(
    onward: Onward, digits: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    path = tmp_path / "out.onnx"
    done = onward("convert", digits, path, *form, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["written"]
    before, after = found["before"]["accuracy"], found["after"]["accuracy"]
    assert before > 0.9
    assert before - after <= 0.01
    exact = form[0] == "--opset"
    (output,) = found["outputs"]
    assert output["error"] == 0 if exact else 0 < output["error"] < 0.15
    assert found["sizes"][1] == path.stat().st_size
    if not exact:
        assert found["sizes"][1] < found["sizes"][0] * 0.6
    # what the report says of the file is what the file is
    again = onward("evaluate", path, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["accuracy"] == pytest.approx(after)
    provenance = read_provenance(load(path))
    assert provenance is not None
    assert provenance.metrics["test_accuracy"] == pytest.approx(after)
    if form[-1] == "bfloat16":
        assert "not compared" in found["witness"]
        return
    assert "onnxruntime" in found["witness"]
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28)).astype(np.uint8)
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    assert scores.shape == (8, 10)


def test_a_converted_file_is_described(onward: Onward, digits: Path, tmp_path: Path) -> None:
    done = onward(
        "convert", digits, tmp_path / "small.onnx", "--weights", "int8", "--keep", "Gemm", "--force"
    )
    assert done.code == 2
    assert "nothing to quantise" in done.err
    done = onward("convert", digits, tmp_path / "small.onnx", "--quantize", "static", "--keep", "Gemm")
    assert done.code == 0, done.err
    assert "accuracy (test)" in done.out
    assert "relative error" in done.out
    model = load(tmp_path / "small.onnx")
    assert json.loads(model.metadata_props["onward.conversion"])["keep"] == ["Gemm"]
    assert "Gemm" in {n.op_type for n in model.graph}


def test_a_worse_file_is_not_written(onward: Onward, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"what was here before")
    arguments = ("convert", digits, path, "--quantize", "static", "--tolerance", 1e-6)
    done = onward(*arguments)
    assert done.code == 1
    assert "is off by" in done.err
    assert "--force" in done.err
    assert path.read_bytes() == b"what was here before"
    done = onward(*arguments, "--force")
    assert done.code == 0
    assert "written all the same" in done.err
    onnx.checker.check_model(str(path))


def test_what_the_data_do_not_show_is_not_seen(onward: Onward, digits: Path, tmp_path: Path) -> None:
    arrays = tmp_path / "dark.npz"
    np.savez(arrays, **{load(digits).graph.inputs[0].name: np.zeros((1, 1, 28, 28), np.uint8)})
    path = tmp_path / "out.onnx"
    # calibrated on one black image, everything else is cut off; on that image it is right
    done = onward("convert", digits, path, "--quantize", "static", "--inputs", arrays)
    assert done.code == 0, done.err
    scored = json.loads(onward("evaluate", path, "--json").out)["accuracy"]
    assert scored < 0.9
    done = onward("convert", path, tmp_path / "again.onnx", "--opset", 17, "--max-drop", 0, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["after"]["accuracy"] == pytest.approx(scored)
    done = onward("convert", digits, path, "--quantize", "static", "--inputs", arrays, "--max-drop", 0.01)
    assert done.code == 1
    assert "no data with targets" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "what is the model to become"),
        (("--opset", 99), "the opset is 7 to"),
        (("--opset", 3), "the opset is 7 to"),
        (("--weights", "int4", "--opset", 13), "int4 needs opset 21"),
        (("--to", "float16", "--weights", "int8"), "exclude one another"),
        (("--weights", "int4", "--block", 7), "not 7"),
        (("--to", "float16", "--block", 32), "block goes with int8 or int4"),
        (("--quantize", "dynamic", "--calibration", "entropy"), "goes with static"),
        (("--to", "float16", "--keep", "Convolution"), "nothing to keep is called 'Convolution'"),
        (("--quantize", "static", "--data", "iris"), "the model"),
        (("--to", "float16", "--tolerance", -1), "at least 0"),
        (("--quantize", "static", "--data", "digits", "--inputs", "x.npz"), "two sources"),
        (("--quantize", "static", "--inputs", "nowhere.npz"), "nowhere.npz"),
    ],
    ids=lambda v: None if isinstance(v, str) else "-".join(map(str, v)) or "nothing",
)
def test_bad_requests(
    onward: Onward, digits: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    done = onward("convert", digits, tmp_path / "out.onnx", *arguments)
    assert done.code == 2, done.err
    assert words in done.err
    assert "internal error" not in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_arrays_that_do_not_fit(onward: Onward, digits: Path, tmp_path: Path) -> None:
    for name, arrays, words in (
        ("names", {"a": np.zeros(3), "b": np.zeros(3)}, "no array"),
        ("shape", {load(digits).graph.inputs[0].name: np.zeros((4, 3, 28, 28), np.uint8)}, "shape"),
        ("dtype", {load(digits).graph.inputs[0].name: np.zeros((4, 1, 28, 28))}, "float64"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        done = onward(
            *("convert", digits, tmp_path / "out.onnx", "--quantize", "static"),
            *("--inputs", tmp_path / f"{name}.npz"),
        )
        assert done.code == 2, done.err
        assert words in done.err


def test_operators_that_an_older_opset_lacks_are_all_named(onward: Onward, tmp_path: Path) -> None:
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [make("Gelu", ["x"], ["g"], name="first"), make("Mish", ["g"], ["y"], name="second")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    done = onward("convert", tmp_path / "m.onnx", tmp_path / "out.onnx", "--opset", 11)
    assert done.code == 2
    assert "'first' (Gelu): opset 11 does not have it" in done.err
    assert "'second' (Mish): opset 11 does not have it" in done.err
    done = onward("convert", tmp_path / "m.onnx", tmp_path / "out.onnx", "--quantize", "static")
    assert done.code == 2
    assert "needs data to calibrate on" in done.err
    done = onward("convert", tmp_path / "m.onnx", tmp_path / "half.onnx", "--to", "float16")
    assert done.code == 0, done.err
    assert "random inputs" in done.err


def test_a_half_precision_file_trains_and_stays_one(onward: Onward, iris: Path, tmp_path: Path) -> None:
    half, tuned = tmp_path / "half.onnx", tmp_path / "tuned.onnx"
    assert onward("convert", iris, half, "--to", "float16").code == 0
    assert "written in float16 again" in onward("inspect", half, "--train").out
    done = onward("train", half, "--data", "iris", "--epochs", 2, "--output", tuned)
    assert done.code == 0, done.err
    assert "types: float16, trained with float32 weights and written in float16 again" in done.out
    model = load(tuned)
    weights = [v.dtype for n, v in model.graph.initializers.items() if not n.startswith("preparation/")]
    assert set(weights) == {ir.DataType.FLOAT16}
    recorded = json.loads(model.metadata_props["onward.metrics"])["test_accuracy"]
    shown = json.loads(onward("evaluate", tuned, "--json").out)
    assert shown["accuracy"] == pytest.approx(recorded)

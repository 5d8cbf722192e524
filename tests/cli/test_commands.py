"""Every command but `train`, on models that `train` made."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.cli.conftest import Onward

from onward.data import load_iris, split
from onward.engine import Session
from onward.model import load, read_provenance

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "convert",
    "verify",
    "inspect",
    "doctor",
    "report",
    "serve",
    "version",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(onward: Onward, command: str) -> None:
    done = onward(command, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert f"onward {command}" in done.out


@pytest.mark.parametrize(
    "command", ["predict", "metadata", "ready", "statistics", "repository", "load", "unload"]
)
def test_help_of_the_client_has_examples(onward: Onward, command: str) -> None:
    done = onward("client", command, "--help")
    assert done.code == 0
    assert f"onward client {command}" in done.out


def test_version(onward: Onward) -> None:
    import onward as package

    assert f"onward {package.__version__}" in onward("version").out.splitlines()


def test_unknown_command(onward: Onward) -> None:
    assert onward("fly").code == 2


def test_evaluate_measures_the_part_that_training_never_saw(onward: Onward, iris: Path) -> None:
    done = onward("evaluate", iris, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    model = load(iris)
    provenance = read_provenance(model)
    assert provenance is not None
    assert found["accuracy"] == pytest.approx(provenance.metrics["test_accuracy"])
    assert done.err == ""
    test = split(load_iris(), (0.6, 0.2, 0.2), seed=0).test
    assert test is not None
    scores = Session(model).run({"input": test.inputs["features"]})["output"]
    assert test.targets is not None
    assert found["accuracy"] == pytest.approx(float((scores.argmax(axis=1) == test.targets).mean()))
    assert np.sum(found["confusion_matrix"]) == len(test)


def test_evaluate_says_where_the_data_are_others(onward: Onward, iris: Path, tmp_path: Path) -> None:
    flowers = load_iris()
    names = ",".join(flowers.columns or ())
    rows = [f"{','.join(map(str, x))},setosa" for x in flowers.inputs["features"][:50].tolist()]
    (tmp_path / "more.csv").write_text("\n".join([names + ",kind", *rows]))
    done = onward("evaluate", iris, "--data", f"csv:{tmp_path / 'more.csv'}", "--target", "kind", "--json")
    assert "not the data" in done.err
    assert json.loads(done.out)["accuracy"] == 1
    done = onward("evaluate", iris, "--data", "wine")
    assert done.code == 2
    assert "the classes 'class_0', 'class_1', 'class_2', which the model does not know" in done.err


def test_evaluate_other_parts(onward: Onward, iris: Path) -> None:
    sizes = {
        part: json.loads(onward("evaluate", iris, "--part", part, "--json").out)["samples"]
        for part in ("train", "validation", "test", "all")
    }
    assert sizes == {"train": 90, "validation": 30, "test": 30, "all": 150}


def test_predict_numbers(onward: Onward, iris: Path) -> None:
    done = onward("predict", iris, "5.1,3.5,1.4,0.2", "6.3,3.3,6.0,2.5", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [row["class"] for row in rows] == ["setosa", "virginica"]
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)


def test_predict_files_agree_and_outputs_are_written(onward: Onward, iris: Path, tmp_path: Path) -> None:
    features = load_iris().inputs["features"][::30]
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "a.npz", input=features)
    rows = "\n".join(",".join(map(str, row)) for row in features.tolist())
    (tmp_path / "a.csv").write_text(f"{','.join(load_iris().columns or ())}\n{rows}\n")
    answers = []
    for name in ("a.npy", "a.npz", "a.csv"):
        output = tmp_path / f"{name}.out.npz"
        done = onward("predict", iris, tmp_path / name, "--output", output)
        assert done.code == 0, done.err
        answers.append(np.load(output)["output"])
    assert answers[0].shape == (5, 3)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-5)


def test_predict_images(onward: Onward, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "digits.onnx"
    done = onward(
        *("train", "lenet5", "--data", "digits", "--image-size", 8, "--epochs", 1, "--output", path),
        *("--split", "0.2,0.4,0.4"),
    )
    assert done.code == 0, done.err
    image.new("RGB", (20, 30), (200, 200, 200)).save(tmp_path / "grey.png")
    done = onward("predict", path, tmp_path / "grey.png", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["class"] in "0123456789"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("1,2,3", "3"),
        ("not-there.npy", "not-there.npy"),
        ("photo.png", "image"),
        ("hello", "hello"),
    ],
)
def test_predict_refuses_what_does_not_fit(onward: Onward, iris: Path, argument: str, says: str) -> None:
    done = onward("predict", iris, argument)
    assert done.code == 2
    assert says in done.err
    assert done.err.startswith("error: ")


def test_export_leaves_a_clean_model(onward: Onward, iris: Path, tmp_path: Path) -> None:
    destination = tmp_path / "clean.onnx"
    done = onward("export", iris, destination, "--ir", 9)
    assert done.code == 0, done.err
    content = onnx.load(destination)
    onnx.checker.check_model(content, full_check=True)
    assert content.ir_version == 9
    features = load_iris().inputs["features"][:4]
    np.testing.assert_array_equal(
        Session(destination).run({"input": features})["output"],
        Session(iris).run({"input": features})["output"],
    )


def test_export_takes_the_weights_of_a_checkpoint(onward: Onward, tmp_path: Path) -> None:
    common = ("train", "mlp", "--data", "iris", "-o", "hidden=[4]")
    start, point, end = tmp_path / "start.onnx", tmp_path / "run.ckpt", tmp_path / "end.onnx"
    assert onward(*common, "--epochs", 1, "--output", start).code == 0
    assert onward(*common, "--epochs", 3, "--checkpoint", point, "--output", end).code == 0
    made = tmp_path / "made.onnx"
    assert onward("export", start, made, "--checkpoint", point).code == 0
    for name, value in load(end).graph.initializers.items():
        other = load(made).graph.initializers[name].const_value
        assert value.const_value is not None
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())
    assert onward("export", start, made, "--checkpoint", tmp_path / "none.ckpt").code == 2


def test_verify_forward_and_backward(onward: Onward, iris: Path) -> None:
    done = onward("verify", iris, "--backward", "--json", "--dim", "N=4")
    assert done.code == 0, done.err
    reports = json.loads(done.out)
    assert reports["forward"]["passed"]
    assert reports["backward"]["passed"]
    assert any(row["kind"] == "gradient" for row in reports["backward"]["rows"])


def test_verify_fails_with_exit_code_1_and_names_the_node(
    onward: Onward, iris: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward.ops.relu import Relu

    # the compiled engine has a Relu of its own
    monkeypatch.setattr(Relu, "kernel", lambda self, X: np.abs(X))
    done = onward("verify", iris, "--engine", "interpreter")
    assert done.code == 1
    assert "Relu" in done.out


def test_verify_with_given_inputs(onward: Onward, iris: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", input=load_iris().inputs["features"][:7])
    assert onward("verify", iris, "--inputs", tmp_path / "batch.npz").code == 0
    np.savez(tmp_path / "wrong.npz", other=np.zeros(3))
    done = onward("verify", iris, "--inputs", tmp_path / "wrong.npz")
    assert done.code == 2
    assert "other" in done.err


def test_inspect(onward: Onward, iris: Path) -> None:
    shown = onward("inspect", iris, "--layers").out
    assert "Gemm" in shown
    assert "trainable: 4 of the initialisers" in shown
    found = json.loads(onward("inspect", iris, "--json").out)
    assert {row["operator"] for row in found["support"]} >= {"Gemm", "Relu"}
    assert all(row["kernel"] and row["gradient"] for row in found["support"])
    normalisation = 4 + 4
    assert found["parameters"] == normalisation + 4 * 16 + 16 + 16 * 3 + 3


def test_inspect_says_what_was_read_otherwise(onward: Onward, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [-1, 3])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [given], [result])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets), path)
    shown = onward("inspect", path).out
    assert "input 'x' declares the dimension -1: read as unknown" in shown
    assert "output 'y' declares no shape" in shown


def _obstructed(path: Path) -> None:
    """A weight, then what cannot be run, in branches too."""
    branch = [
        helper.make_graph(
            [helper.make_node("Unheard", ["r"], [name], name=f"in {name}", domain="com.example")],
            f"{name} branch", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3])],
        )
        for name in ("yes", "no")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"], name="scale"),
        helper.make_node("Unheard", ["m"], ["u"], name="first", domain="com.example"),
        helper.make_node("Unheard", ["u"], ["v"], name="second", domain="com.example"),
        helper.make_node("Relu", ["v"], ["r"], name="relu"),
        helper.make_node("If", ["flag"], ["y"], name="either", then_branch=branch[0], else_branch=branch[1]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [
            onnx.numpy_helper.from_array(np.ones(3, np.float32), "w"),
            onnx.numpy_helper.from_array(np.array(True), "flag"),
        ],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)


def test_inspect_lists_every_obstacle_to_training(onward: Onward, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    _obstructed(path)
    done = onward("inspect", path, "--train", "--json")
    assert done.code == 1
    found = {(row["kind"], row["node"], row["place"]) for row in json.loads(done.out)["obstacles"]}
    assert found == {
        ("operator", "first", ""),
        ("operator", "second", ""),
        ("operator", "in yes", "If 'either', yes branch"),
        ("operator", "in no", "If 'either', no branch"),
    }
    shown = onward("inspect", path, "--train").out
    assert "4 obstacles to training" in shown
    assert "4 nodes: 'first', 'second', " in shown
    assert "'in yes' (in If 'either', yes branch)" in shown
    assert "does not depend" not in shown


def test_inspect_names_where_no_gradient_passes(onward: Onward, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"], name="scale"),
        helper.make_node("Cast", ["m"], ["i"], name="to integers", to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in "xy")
    weight = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    imports = [helper.make_opsetid("", 17)]
    path = tmp_path / "integers.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    done = onward("inspect", path, "--train", "--json")
    assert done.code == 1
    (row,) = json.loads(done.out)["obstacles"]
    assert (row["kind"], row["node"]) == ("gradient", "to integers")
    assert "not of a floating-point type" in row["why"]


def test_inspect_finds_nothing_in_the_way(onward: Onward, iris: Path) -> None:
    done = onward("inspect", iris, "--train")
    assert done.code == 0
    assert "nothing keeps it from being trained" in done.out


def test_inspect_names_operators_that_cannot_be_run(onward: Onward, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Unheard", ["x"], ["y"], domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "odd.onnx")
    done = onward("inspect", tmp_path / "odd.onnx", "--json")
    assert done.code == 0, done.err
    row = next(r for r in json.loads(done.out)["support"] if r["operator"] == "com.example::Unheard")
    assert not row["kernel"]
    assert "Unheard" in row["problem"]


@pytest.mark.parametrize("training", [False, True])
def test_inspect_shows_the_plan(onward: Onward, iris: Path, training: bool) -> None:
    options = ("--plan", "--dim", "N=4", *(["--training"] if training else []))
    shown = onward("inspect", iris, *options).out
    assert "gemm" in shown
    assert "bytes of working memory" in shown
    found = json.loads(onward("inspect", iris, *options, "--threads", 1, "--json").out)
    assert found["inputs"]["input"] == [4, 4]
    assert found["threads"] == 1
    assert found["arena_bytes"] > 0
    assert any("AdamUpdate" in call["operators"] for call in found["calls"]) == training
    assert all(call["reason"] == "" for call in found["calls"] if call["kernel"] != "numpy")


def test_inspect_names_what_numpy_computes_in_a_plan(onward: Onward, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    imports = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "det.onnx")
    found = json.loads(onward("inspect", tmp_path / "det.onnx", "--plan", "--json").out)
    assert found["inputs"] == {"x": [1, 3, 3]}
    assert [call["kernel"] for call in found["calls"] if call["reason"]] == ["numpy"]
    assert "1 of them NumPy" in onward("inspect", tmp_path / "det.onnx", "--plan").out


def test_inspect_lists_the_parts_of_a_model_without_one_plan(onward: Onward, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("NonZero", ["h"], ["at"], name="found"),
            helper.make_node("Transpose", ["at"], ["rows"]),
            helper.make_node("GatherND", ["h", "rows"], ["kept"]),
            helper.make_node("Unsqueeze", ["kept", "one"], ["column"]),
            helper.make_node("MatMul", ["column", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["K", 40])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [30, 2], [1.0] * 60),
            helper.make_tensor("v", TensorProto.FLOAT, [1, 40], [1.0] * 40),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )
    path = tmp_path / "found.onnx"
    imports = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    shown = onward("inspect", path, "--plan", "--dim", "N=5").out
    assert "runs in 3 parts" in shown
    assert "part 1: 1 node, one plan for x [5, 30]" in shown
    assert "NonZero found: the shape of 'at' depends on data" in shown
    assert "part 3: 4 nodes, whose shapes depend on data" in shown
    found = json.loads(onward("inspect", path, "--plan", "--json").out)
    assert not found["static"]
    assert [part["engine"] for part in found["segments"]] == ["compiled", "interpreter", "compiled"]
    assert "gemm" in found["segments"][0]["calls"][0]["kernel"]
    assert [cut["node"] for part in found["segments"] for cut in part["cuts"]] == ["NonZero found"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plan", "--dim", "Q=4"), "no input has a dimension 'Q'"),
        (("--plan", "--dim", "N=0"), "NAME=NUMBER"),
        (("--training",), "belong to --plan"),
    ],
)
def test_inspect_refuses_options_that_do_not_fit(
    onward: Onward, iris: Path, options: tuple[str, ...], says: str
) -> None:
    done = onward("inspect", iris, *options)
    assert done.code == 2
    assert says in done.err


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
def test_verify_compares_the_engine_that_is_asked_for(
    onward: Onward, iris: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    from onward.engine import Interpreter

    ran = []
    run = Interpreter.run

    def observed(self: Interpreter, *args: Any, **options: Any) -> Any:
        ran.append(self)
        return run(self, *args, **options)

    monkeypatch.setattr(Interpreter, "run", observed)
    done = onward("verify", iris, "--engine", engine, "--samples", 1)
    assert done.code == 0, done.err
    assert bool(ran) == (engine == "interpreter")


def test_a_full_disk_behind_the_output_is_one_line(
    onward: Onward, iris: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onward.model as models

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(models, "inspect_model", full)
    done = onward("inspect", iris)
    assert done.code == 2
    assert done.err == f"error: the output: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize("command", ["evaluate", "verify", "inspect"])
@pytest.mark.parametrize("content", [None, b"", b"\x08nonsense", b"not a model at all"])
def test_bad_files_are_one_line(onward: Onward, tmp_path: Path, command: str, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    done = onward(command, path)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "bad.onnx" in done.err


def test_defects_are_said_to_be_defects(onward: Onward, iris: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onward.model as models

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(models, "load", broken)
    done = onward("inspect", iris)
    assert done.code == 70
    assert "no such luck" in done.err
    assert "Traceback" not in done.err


def test_serve_needs_a_repository_that_is_there(onward: Onward, tmp_path: Path) -> None:
    done = onward("serve", tmp_path / "nowhere", "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "nowhere" in done.err


def test_client_commands_against_a_server(
    onward: Onward, iris: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward_server import ServerThread
    from onward_server.model_settings import CrossCheckSettings
    from onward_server.settings import ServerSettings

    def full_disk(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space")

    place = tmp_path / "models" / "iris" / "1" / "model.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(iris.read_bytes())
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    settings = ServerSettings(
        repository=tmp_path / "models",
        listen="127.0.0.1:0",
        cross_check=CrossCheckSettings(policy="every"),
    )
    with ServerThread(settings) as server:
        at = ("--address", server.address)
        assert onward("client", "ready", *at).out == "ready\n"
        assert onward("client", "ready", "nothing", *at).code == 1
        assert json.loads(onward("client", "metadata", "iris", *at).out)["inputs"][0]["datatype"] == "FP32"
        answer = json.loads(onward("client", "predict", "iris", tmp_path / "x.npy", *at).out)
        assert answer["cross_check"] == "passed"
        assert np.shape(answer["outputs"]["output"]) == (2, 3)
        kept = tmp_path / "answers.npz"
        assert onward("client", "predict", "iris", tmp_path / "x.npy", "--output", kept, *at).code == 0
        before = kept.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", full_disk)
            failed = onward("client", "predict", "iris", tmp_path / "x.npy", "--output", kept, *at)
        assert (failed.code, failed.err) == (2, f"error: {kept}: cannot be written: no space\n")
        assert kept.read_bytes() == before
        assert not list(tmp_path.glob(".answers*"))
        refused = onward("client", "predict", "nothing", tmp_path / "x.npy", *at)
        assert refused.code == 2
        assert "nothing" in refused.err
        counts = json.loads(onward("client", "statistics", "iris", *at).out)
        assert counts["cross_checks"][0]["passed"] == 3
        assert json.loads(onward("client", "repository", *at).out)["state"] == "READY"
        refused = onward("client", "load", "iris", *at)
        assert refused.code == 2
        assert "model_control" in refused.err
        (tmp_path / "config.json").write_text("[1]")
        refused = onward("client", "load", "iris", "--config", tmp_path / "config.json", *at)
        assert refused.err == f"error: {tmp_path / 'config.json'}: not a JSON object\n"

"""Options around the weights reach the run, the exported file, and a resumed run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward import runs
from onward.cli import main
from onward.engine import Session
from onward.errors import ConfigError
from onward.model import load, read_provenance

pytest.importorskip("sklearn")


def config(folder: Path, name: str = "model", **tables: Any) -> runs.RunConfig:
    values = {
        "model": {"name": "mlp", "options": {"hidden": [32]}},
        "data": {"spec": "digits"},
        "epochs": 3,
        "output": str(folder / f"{name}.onnx"),
        **tables,
    }
    return runs.run_of(values)


@pytest.mark.parametrize("table", [{"name": "ema", "decay": 0.9}, {"name": "swa", "start": 2}])
def test_the_average_is_exported(tmp_path: Path, table: dict[str, Any]) -> None:
    result = runs.execute(config(tmp_path, averaging=table))
    plain = runs.execute(config(tmp_path, "plain"))
    assert result.trainer is not None
    assert plain.trainer is not None
    graph = load(tmp_path / "model.onnx").graph
    for name in result.trainer.trainable:
        value = graph.initializers[name].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), result.trainer.weights()[name])
        assert not np.array_equal(value.numpy(), plain.trainer.weights()[name])
    assert result.figures["test_accuracy"] > 0.8
    assert Session(tmp_path / "model.onnx").inputs[0].name == "input"


def test_options_of_an_average_need_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"averaging\.decay needs averaging\.name: ema or swa"):
        runs.execute(config(tmp_path, averaging={"decay": 0.5}))
    with pytest.raises(ConfigError, match="averaging 'ema' has no option 'start'"):
        runs.execute(config(tmp_path, averaging={"name": "ema", "start": 2}))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the zoo, trained on digits."""
    folder = tmp_path_factory.mktemp("pretrained")
    runs.execute(config(folder, "big", model={"name": "mlp", "options": {"hidden": [64]}}, epochs=6))
    return folder / "big.onnx"


def raw_digits() -> np.ndarray:
    from onward.runs.config import DataTable
    from onward.runs.preparation import read_data

    return next(iter(read_data(DataTable(spec="digits")).dataset.inputs.values()))[:50]


def outputs(path: Path) -> np.ndarray:
    session = Session(path)
    (spec,) = session.inputs
    return next(iter(session.run({spec.name: raw_digits()}).values()))


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_adapters_of_a_file(tmp_path: Path, pretrained: Path, form: str) -> None:
    told: list[Any] = []
    adapted = config(
        tmp_path,
        model=str(pretrained),
        lora={"rank": 2, "targets": ["dense*"], "export": form},
        optimizer={"name": "adam", "learning_rate": 0.01},
    )
    result = runs.execute(adapted, events=told.append)
    assert result.trainer is not None
    assert all("lora" in name for name in result.trainer.trainable)
    if form == "merged":
        old, new = (load(path).graph.initializers for path in (pretrained, tmp_path / "model.onnx"))
        assert set(old) == set(new)
        changed = {
            n for n in old if old[n].const_value.numpy().tobytes() != new[n].const_value.numpy().tobytes()
        }
        assert changed == {"dense_1.weight", "dense_2.weight"}
        return
    (note,) = [note for event in told if isinstance(event, runs.Exported) for note in event.notes]
    assert "add_active_adapter" in note
    np.testing.assert_allclose(outputs(tmp_path / "model.onnx"), outputs(pretrained), rtol=1e-4, atol=1e-4)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main(
            [
                *("export", str(tmp_path / "model.onnx"), str(tmp_path / "merged.onnx")),
                *("--adapter", str(tmp_path / "model.onnx_adapter")),
            ]
        )
    assert "agree" in out.getvalue()
    held = result.trainer.model
    value = held.graph.initializers["dense_1.weight"].const_value
    written = load(tmp_path / "merged.onnx").graph.initializers["dense_1.weight"].const_value
    np.testing.assert_allclose(written.numpy(), value.numpy(), rtol=1e-6, atol=1e-7)
    assert np.abs(outputs(tmp_path / "merged.onnx") - outputs(pretrained)).max() > 0.1


def test_adapters_beside_a_new_head(tmp_path: Path, pretrained: Path) -> None:
    from onward.train import LoRA

    result = runs.execute(
        config(tmp_path, model={"name": str(pretrained), "head": 10}, lora={"rank": 4}, epochs=2)
    )
    assert result.trainer is not None
    assert result.trainer.lora == LoRA(rank=4)
    assert result.trainer.trainable[-2:] == ["dense_2.weight", "dense_2.bias"]


def test_a_pruned_network_is_sparse_in_its_file(tmp_path: Path) -> None:
    told: list[Any] = []
    pruned = config(tmp_path, pruning={"sparsity": 0.8}, averaging={"name": "ema", "decay": 0.9})
    result = runs.execute(pruned, events=told.append)
    (event,) = [event for event in told if isinstance(event, runs.Pruned)]
    assert event.zeros / event.weights == pytest.approx(0.8, abs=1e-3)
    assert result.figures["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert result.figures["test_accuracy"] > 0.8
    graph = load(tmp_path / "model.onnx").graph
    for name, share in event.shares.items():
        value = graph.initializers[name].const_value
        assert value is not None
        assert np.mean(value.numpy() == 0) == pytest.approx(share)


def test_a_student_takes_over_its_teachers_preparation(tmp_path: Path, pretrained: Path) -> None:
    small = {"name": "mlp", "options": {"hidden": [16]}}
    taught = config(
        tmp_path,
        model=small,
        distillation={"teacher": str(pretrained), "alpha": 0.2, "temperature": 3},
        data={"spec": "digits", "split_seed": 5},
        epochs=8,
    )
    result = runs.execute(taught)
    assert result.trainer is not None
    of_teacher, of_student = (read_provenance(load(p)) for p in (pretrained, tmp_path / "model.onnx"))
    assert of_teacher is not None
    assert of_student is not None
    assert of_student.preparation["inputs"] == of_teacher.preparation["inputs"]
    assert sum(n.op_type == "Gemm" for n in load(tmp_path / "model.onnx").graph) == 2
    agree = np.mean(outputs(tmp_path / "model.onnx").argmax(1) == outputs(pretrained).argmax(1))
    assert agree > 0.9
    # what is shown as the loss has the teacher's part in it, what is validated has not
    rows = result.history.rows
    assert rows[-1]["val_loss"] != pytest.approx(rows[-1]["loss"], rel=0.01)


def test_options_that_do_nothing_are_refused(tmp_path: Path, pretrained: Path) -> None:
    for tables, text in [
        ({"pruning": {"start": 0.1}}, r"pruning\.start needs pruning\.sparsity"),
        ({"distillation": {"alpha": 0.1}}, r"distillation\.alpha needs distillation\.teacher"),
        ({"lora": {"rank": 2}}, "for .onnx files; mlp has nothing to adapt"),
        ({"lora": {"rank": 2, "targets": ["conv*"]}, "model": str(pretrained)}, "matches 'conv"),
    ]:
        with pytest.raises(ConfigError, match=text):
            runs.execute(config(tmp_path, **tables))
    assert not list(tmp_path.glob("*.onnx"))


def test_a_checkpoints_average_is_exported(tmp_path: Path) -> None:
    """Not the weights that the run would go on with."""
    path = tmp_path / "run.ckpt"
    averaged = config(
        tmp_path,
        averaging={"name": "ema", "decay": 0.99, "warmup": False},
        checkpoint={"path": str(path)},
        preparation=False,
    )
    result = runs.execute(averaged)
    assert result.trainer is not None
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(
            ["export", str(tmp_path / "model.onnx"), str(tmp_path / "again.onnx"), "--checkpoint", str(path)]
        )
    np.testing.assert_array_equal(
        outputs_of_zeros(tmp_path / "again.onnx"), outputs_of_zeros(tmp_path / "model.onnx")
    )
    assert not np.array_equal(
        result.trainer.state["dense_1.weight"], result.trainer.weights()["dense_1.weight"]
    )


def outputs_of_zeros(path: Path) -> np.ndarray:
    session = Session(path)
    (spec,) = session.inputs
    shape = [3, *(d for d in spec.shape[1:] if isinstance(d, int))]
    return next(iter(session.run({spec.name: np.ones(shape, spec.dtype)}).values()))


def test_fields_on_the_command_line(tmp_path: Path) -> None:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main(
            [
                *("train", "x.onnx", "--data", "digits", "--lora", "rank=4,alpha=8,targets=*a*|*b*"),
                *("--sparsity", "0.5", "--teacher", "t.onnx", "--averaging", "ema", "--print-config"),
            ]
        )
    (tmp_path / "run.toml").write_text(out.getvalue())
    read = runs.read_run(tmp_path / "run.toml", {})
    assert read.lora is not None
    assert (read.lora.rank, read.lora.alpha, read.lora.targets) == (4, 8, ("*a*", "*b*"))
    assert read.pruning.sparsity == 0.5
    assert read.distillation.teacher == Path("t.onnx")
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit):
        main(["train", "x.onnx", "--data", "digits", "--lora", "rank=4,what=8"])
    assert "unknown key 'lora.what'" in err.getvalue()


def test_adapters_of_a_file_in_16_bits(tmp_path: Path, pretrained: Path) -> None:
    import onnx_ir as ir

    from onward.model import save
    from onward.passes import to_half

    half = to_half(load(pretrained), ir.DataType.FLOAT16)
    save(half if isinstance(half, ir.Model) else half[0], tmp_path / "half.onnx")
    run = config(tmp_path, model=str(tmp_path / "half.onnx"), lora={"rank": 2}, epochs=1)
    result = runs.execute(run)
    assert result.figures["test_accuracy"] > 0.9
    kinds = {v.dtype for v in load(tmp_path / "model.onnx").graph.initializers.values()}
    assert ir.DataType.FLOAT16 in kinds

"""Options around the weights reach the run, the exported file, and a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward import runs
from onward.engine import Session
from onward.errors import ConfigError
from onward.model import load

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

"""What a run on a table does where its configuration leaves it open."""

from __future__ import annotations

from typing import Any

from onward.data import Splits
from onward.runs.config import RunConfig

__all__ = ["columns_text", "tabular_defaults"]

_SMALL, _LARGE = 2_000, 20_000


def columns_text(count: int) -> str:
    """So many columns, in words."""
    return f"{count:,} column{'' if count == 1 else 's'}"


def tabular_defaults(config: RunConfig, parts: Splits) -> RunConfig:
    """The configuration with a multilayer perceptron's settings for tables where none were chosen.

    `benchmarks/tables.py` measures them. Data that are no table, and other networks, keep their own defaults.
    """
    if not parts.train.table or config.model.name != "mlp":
        return config
    rows = len(parts.train)
    options: dict[str, Any] = {"hidden": [128, 64], "dropout": 0.4}
    changed: dict[str, Any] = {
        "model": config.model.model_copy(update={"options": {**options, **config.model.options}})
    }
    if "batch_size" not in config.model_fields_set:
        changed["batch_size"] = 32 if rows <= _SMALL else 64 if rows <= _LARGE else 256
    if "optimizer" not in config.model_fields_set:
        changed["optimizer"] = config.optimizer.model_copy(
            update={"name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.1}
        )
    if "epochs" not in config.model_fields_set:
        changed["epochs"] = 100
        if parts.validation is not None and config.early_stopping.patience is None:
            changed["early_stopping"] = config.early_stopping.model_copy(update={"patience": 10})
    return config.model_copy(update=changed)

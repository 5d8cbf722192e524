"""From a configuration to the objects of a run: model, loss, optimizer, schedule, callbacks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.runs.config import RunConfig
from onward.runs.preparation import Preparation
from onward.data import Dataset
from onward.errors import ConfigError, StorageError
from onward.model import load, read_provenance
from onward.nn import zoo
from onward.train import (
    BinaryCrossEntropy,
    Callback,
    Checkpoints,
    Clip,
    CSVLog,
    EarlyStopping,
    Loss,
    Optimizer,
    Schedule,
    TensorBoardLog,
    balanced_class_weights,
    loss_named,
    optimizer_named,
    schedule_named,
)
from onward.train.run import Run

__all__ = [
    "EpochLines",
    "callbacks_of",
    "clip_of",
    "for_loss",
    "loss_of",
    "model_of",
    "optimizer_of",
    "output_of",
    "schedule_of",
]


def model_of(run: RunConfig, train: Dataset, prepared: Preparation) -> ir.Model:
    """The model to train: a file, or a network of the zoo that fits the data.

    Raises:
        ConfigError: the network is unknown, or the data are not of its kind.
    """
    name = run.model.name
    if is_file(name):
        if run.model.options:
            raise ConfigError(f"model options are for networks of the zoo, {name} is a file")
        return load(name)
    if name not in zoo.names():
        raise ConfigError(f"model {name!r} is neither an .onnx file nor one of {', '.join(zoo.names())}")
    takes = inspect.signature(getattr(zoo, name)).parameters
    options = {**_fitting(name, takes, train, prepared), "seed": run.seed}
    if run.loss.name == "binary_cross_entropy" and train.class_count == 2:
        options["num_classes"] = 1
    options |= run.model.options
    return zoo.build(name, **options).model


def known_preparation(run: RunConfig) -> Preparation | None:
    """How a model that is trained further prepares its inputs; None for a new one."""
    if not is_file(run.model.name):
        return None
    provenance = read_provenance(load(run.model.name))
    return None if provenance is None else Preparation.of(provenance)


def is_file(name: str) -> bool:
    """Whether a model's name is a file's."""
    return name.endswith(".onnx") or "/" in name


def loss_of(run: RunConfig, train: Dataset) -> Loss:
    """The loss: as configured, or cross-entropy for classes and the mean squared error for numbers."""
    name = run.loss.name or ("cross_entropy" if train.task == "classification" else "mse")
    options = run.loss.given()
    if options.get("class_weights") == "balanced":
        if train.targets is None or train.class_count is None:
            raise ConfigError("balanced class weights need class labels")
        options["class_weights"] = balanced_class_weights(train.targets.reshape(-1), train.class_count)
    return loss_named(name, **options)


def for_loss(dataset: Dataset, loss: Loss) -> Dataset:
    """The data set with targets of the shape that the loss takes: binary cross-entropy wants [N, 1]."""
    targets = dataset.targets
    if not isinstance(loss, BinaryCrossEntropy) or targets is None or targets.ndim != 1:
        return dataset
    return dataclasses.replace(dataset, targets=targets[:, None])


def optimizer_of(run: RunConfig) -> Optimizer:
    """The optimizer."""
    options = run.optimizer.given()
    if "groups" in options:
        options["groups"] = [group.model_dump() for group in options["groups"]]
    return optimizer_named(run.optimizer.name, **options)


def schedule_of(run: RunConfig) -> Schedule:
    """The schedule of the learning rate."""
    return schedule_named(run.schedule.name, **run.schedule.given())


def clip_of(run: RunConfig) -> Clip | None:
    """Gradient clipping, if any."""
    if run.clip_norm is None and run.clip_value is None:
        return None
    return Clip(value=run.clip_value, norm=run.clip_norm)


def callbacks_of(run: RunConfig) -> list[Callback]:
    """Early stopping, logs and checkpoints, as configured; folders are made.

    Raises:
        StorageError: a folder cannot be made.
        ConfigError: the TensorBoard log is not installed.
    """
    callbacks: list[Callback] = []
    if run.early_stopping.patience is not None:
        callbacks.append(EarlyStopping(run.early_stopping.monitor, run.early_stopping.patience))
    if run.log.csv is not None:
        callbacks.append(CSVLog(_with_folder(run.log.csv)))
    if run.log.tensorboard is not None:
        callbacks.append(TensorBoardLog(run.log.tensorboard))
    if run.checkpoint.path is not None:
        callbacks.append(Checkpoints(_with_folder(run.checkpoint.path), run.checkpoint.every))
    elif run.checkpoint.every is not None:
        raise ConfigError("checkpoint.every needs checkpoint.path")
    return callbacks


def output_of(run: RunConfig) -> Path:
    """Where the model goes; its folder is made now, before hours of training could be in vain.

    Raises:
        StorageError: the folder cannot be made.
    """
    name = Path(run.model.name).stem
    return _with_folder(run.output if run.output is not None else Path("runs") / name / "model.onnx")


@final
class EpochLines(Callback):
    """One line an epoch, where no progress bar shows it."""

    def on_epoch_end(self, run: Run) -> None:
        row = run.history.rows[-1]
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        print(f"epoch {int(row['epoch'])}/{run.epochs}  {figures}", flush=True)


def _with_folder(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"folder {path.parent} cannot be made: {error.strerror}") from None
    if path.is_dir():
        raise StorageError(f"{path} is a folder; a file is needed")
    return path


def _fitting(name: str, takes: Mapping[str, Any], train: Dataset, prepared: Preparation) -> dict[str, Any]:
    """Options of a network that follow from the data."""
    arrays = [a for key, a in train.inputs.items() if not key.endswith(".target")]
    if len(arrays) != 1:
        raise ConfigError(f"network {name!r} has one input, data set {train.name!r} has {len(arrays)}")
    shape = arrays[0].shape[1:]
    options: dict[str, Any] = {"num_classes": _outputs(train)}
    if "vocabulary_size" in takes:
        if arrays[0].dtype.kind not in "iu" or len(shape) != 1:
            raise _unfit(name, "text (text:FILE) or integer tokens [N, T]", train, arrays[0].dtype, shape)
        size = len(prepared.vocabulary) if prepared.vocabulary is not None else int(arrays[0].max()) + 1
        options |= {"vocabulary_size": size, "length": shape[0]}
    elif "image_size" in takes:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise _unfit(name, "square images [N, C, S, S]", train, arrays[0].dtype, shape)
        options |= {"channels": shape[0], "image_size": shape[1]}
    elif "input_shape" in takes:
        options["input_shape"] = shape
    return options


def _outputs(train: Dataset) -> int:
    if train.task == "classification":
        return train.class_count or 2
    assert train.targets is not None
    return int(np.prod(train.targets.shape[1:]))


def _unfit(name: str, what: str, data: Dataset, dtype: np.dtype[Any], shape: Sequence[int]) -> ConfigError:
    dims = ", ".join(("N", *map(str, shape)))
    return ConfigError(f"network {name!r} takes {what}; data set {data.name!r} has {dtype}[{dims}]")

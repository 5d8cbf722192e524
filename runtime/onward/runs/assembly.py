"""From a configuration to the objects of a run: model, tasks, losses, optimizer, schedule, callbacks."""

from __future__ import annotations

import glob
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.data import Dataset, Preparation, Splits
from onward.errors import ConfigError, StorageError
from onward.graph import dims_of, dtype_of
from onward.model import Provenance, load, read_provenance
from onward.model.reader import TRAINING_INFO
from onward.nn import zoo
from onward.passes import (
    LoRA,
    axis_of_all,
    detach_preparation,
    detach_table,
    find_head,
    new_head,
    samples_first,
)
from onward.runs.config import ModelTable, RunConfig
from onward.runs.fixing import fixed, opened
from onward.runs.preparation import Prepared, input_names
from onward.train import (
    Averaging,
    Callback,
    Checkpoints,
    Clip,
    CSVLog,
    Distillation,
    EarlyStopping,
    Loss,
    Optimizer,
    Pruning,
    Schedule,
    TensorBoardLog,
    averaging_named,
    balanced_class_weights,
    loss_named,
    optimizer_named,
    schedule_named,
)
from onward.train.task import Task, infer_task

__all__ = [
    "Base",
    "Targets",
    "averaging_of",
    "base_of",
    "build_network",
    "callbacks_of",
    "checkpoints_of",
    "clip_of",
    "distillation_of",
    "fit_head",
    "lora_of",
    "numbered_classes",
    "optimizer_of",
    "output_of",
    "prepared_parts",
    "pruning_of",
    "run_name",
    "schedule_of",
    "targets_of",
    "teacher_of",
    "untouched_inputs",
]


@final
@dataclass(frozen=True, eq=False)
class Base:
    """The .onnx file that is trained further.

    Attributes:
        model: what takes prepared inputs.
        prepared: what its metadata say of them.
        classes: the names of its classes, if it says any.
        opened: whether the file takes one sample at a time, and this model a batch.
        steps: training steps that the file brings along in its training_info.
    """

    model: ir.Model
    prepared: Prepared
    classes: tuple[str, ...] | None
    opened: bool = False
    steps: int = 0


@final
@dataclass(frozen=True, eq=False)
class Targets:
    """What is trained towards what.

    Attributes:
        tasks: by output; the first output's targets are the data set's own.
        losses: by output.
        names: of the losses.
    """

    tasks: Mapping[str, Task]
    losses: Mapping[str, Loss]
    names: Mapping[str, str]

    @property
    def first(self) -> Task:
        """The task of the data set's own targets."""
        return next(iter(self.tasks.values()))

    def fitted(self, dataset: Dataset) -> Dataset:
        """The data set with targets of the form that the losses take."""
        return self.first.fitted(dataset, next(iter(self.losses.values())))


def is_file(name: str) -> bool:
    """Whether a model's name is a file's."""
    return name.endswith(".onnx") or "/" in name


def base_of(run: RunConfig) -> Base | None:
    """The file that a run starts from, its preparation taken out of the graph; None for a network of the zoo.

    Raises:
        ConfigError: the network is unknown, or options do not belong to a file.
        InvalidModelError, StorageError: the file cannot be read.
    """
    name = run.model.name
    if not is_file(name):
        if name not in zoo.names():
            raise ConfigError(f"model {name!r} is neither an .onnx file nor one of {', '.join(zoo.names())}")
        if run.model.head is not None:
            raise ConfigError(f"--head is for .onnx files; the outputs of {name} follow from the data")
        if run.model.shapes or run.model.constants or run.model.sample_axis:
            raise ConfigError(
                f"--shapes, --constants and --sample-axis are for .onnx files; {name} is made for the data"
            )
        return None
    if run.model.options:
        raise ConfigError(f"model options are for networks of the zoo, {name} is a file")
    return _base(name, run.model)


def teacher_of(run: RunConfig, base: Base | None) -> Base | None:
    """The file whose scores are learned from too, its preparation taken out of the graph.

    Raises:
        ConfigError: options without a teacher, or one that prepares its inputs unlike the trained file.
        InvalidModelError, StorageError: the file cannot be read.
    """
    options = run.distillation.given()
    if run.distillation.teacher is None:
        if options:
            raise ConfigError(f"distillation.{next(iter(options))} needs distillation.teacher (--teacher)")
        return None
    teacher = _base(str(run.distillation.teacher))
    if base is not None and base.prepared.preparation.to_json() != teacher.prepared.preparation.to_json():
        raise ConfigError(
            f"teacher {run.distillation.teacher} prepares its inputs unlike {run.model.name}: train both on "
            "the same data, or give the teacher a student of the zoo, which takes over its preparation"
        )
    return teacher


def distillation_of(run: RunConfig, teacher: Base | None) -> Distillation | None:
    """What is learned from a teacher, if there is one."""
    if teacher is None:
        return None
    return Distillation(**{**run.distillation.given(), "teacher": teacher.model})


def pruning_of(run: RunConfig) -> Pruning | None:
    """The pruning, if any.

    Raises:
        ConfigError: options without a sparsity.
    """
    options = run.pruning.given()
    if run.pruning.sparsity is None:
        if options:
            raise ConfigError(f"pruning.{next(iter(options))} needs pruning.sparsity (--sparsity)")
        return None
    return Pruning(**options)


def lora_of(run: RunConfig, model: ir.Model, base: Base | None) -> tuple[LoRA | None, Sequence[str] | None]:
    """The adapters, if any, and patterns of the weights that are trained.

    A head that is not the file's is trained as it is.

    Raises:
        ConfigError: adapters on a network of the zoo, whose weights are random.
    """
    if run.lora is None:
        return None, run.model.trainable
    if base is None:
        raise ConfigError(f"adapters (--lora) are for .onnx files; {run.model.name} has nothing to adapt")
    lora = LoRA(rank=run.lora.rank, alpha=run.lora.alpha, targets=run.lora.targets)
    if model is base.model:
        return lora, run.model.trainable
    head = find_head(model)
    names = [glob.escape(name) for name in (head.weight, head.bias) if name is not None]
    return lora, (*(run.model.trainable or ()), *names)


def _base(name: str, table: ModelTable | None = None) -> Base:
    model, batched = load(name), None
    steps = len(model.meta.pop(TRAINING_INFO, ()))
    if table is not None:
        model = fixed(model, table.shapes, table.constants)
        model = samples_first(model, _sample_axes(model, table.sample_axis))
        batched = opened(model)
    provenance = read_provenance(model)
    model = model if batched is None else batched
    prepared = Prepared.of(provenance)
    if prepared.inside:
        changed = [key for key, each in prepared.preparation.numbers.items() if not each.empty]
        model = detach_preparation(model, changed)
        if (columns := prepared.preparation.table) is not None:
            model = detach_table(model, columns)
    return Base(model, prepared, _classes_of(provenance), batched is not None, steps)


def _sample_axes(model: ir.Model, given: Sequence[str]) -> dict[str, int]:
    """Where samples lie, by input and output.

    Raises:
        ConfigError: it is no number, nor NAME=NUMBER.
    """
    axes: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            axis = int(number)
        except ValueError:
            raise ConfigError(f"--sample-axis {text}: give an axis, such as 1, or NAME=1") from None
        axes |= {name: axis} if name else axis_of_all(model, axis)
    return axes


def untouched_inputs(run: RunConfig, base: Base | None, train: Dataset) -> list[str]:
    """The data set's inputs that the network takes as integers: tokens, or bytes."""
    if train.table:
        return []
    if base is None:
        takes = inspect.signature(getattr(zoo, run.model.name)).parameters
        if "vocabulary_size" not in takes:
            return []
        return [name for name, array in train.inputs.items() if array.dtype.kind in "iu"]
    values = {v.name or "": v for v in base.model.graph.inputs if v.name not in base.model.graph.initializers}
    names = input_names(train, list(values))
    return [own for own, name in names.items() if not dtype_of(values[name]).is_floating_point()]


def build_network(run: RunConfig, train: Dataset, preparation: Preparation) -> ir.Model:
    """A network of the zoo that fits the prepared training part.

    Raises:
        ConfigError: the data are not of its kind, or an option is none of its own.
    """
    name = run.model.name
    takes = inspect.signature(getattr(zoo, name)).parameters
    options = {**_fitting(name, takes, train, preparation), "seed": run.seed}
    if run.loss.name == "binary_cross_entropy" and infer_task(train).kind == "binary":
        options["num_classes"] = 1
    return zoo.build(name, **{**options, **run.model.options}).model


def fit_head(run: RunConfig, base: Base, train: Dataset, *, named: bool) -> tuple[ir.Model, str]:
    """The file's model with a last layer for the data's targets.

    Args:
        run: `model.head`, if given, decides; else the head is replaced where classes differ.
        base: the file.
        train: the training part.
        named: whether the data name their classes; numbers alone may be those of the model's classes.

    Returns:
        The model, and a line that says what was done or may have been meant; empty where there is nothing to
        say.

    Raises:
        UnsupportedError: the classes differ and the model's last layer cannot be replaced.
    """
    model = base.model
    if run.model.head is not None:
        return _with_head(model, run.model.head, run.seed, "as --head says")
    dims = dims_of(model.graph.outputs[0])
    targets = train.targets
    if dims is None or targets is None or len(dims) < 2:
        return model, ""
    if len(dims) > 2:
        count = train.class_count
        extents = [d for d in (dims[1], dims[-1]) if isinstance(d, int)]
        if count is None or len(extents) < 2 or max(extents) >= count:
            return model, ""
        return _with_head(model, count, run.seed, f"the data have {count:,} classes")
    task, outputs = infer_task(train), dims[1]
    counted = targets if train.ignore_index is None else targets[targets != train.ignore_index]
    used = int(counted.max(initial=-1)) + 1 if train.task == "classification" else 0
    if not isinstance(outputs, int) or (task.kind == "binary" and outputs == 1):
        return model, ""
    others = (
        base.classes is not None and train.classes is not None and not set(train.classes) <= set(base.classes)
    )
    if task.count == outputs and not others:
        if named or base.classes is not None or task.kind != "multi-class" or used == outputs:
            return model, ""
        return model, (
            f"head: the labels 0 … {used - 1} are taken as {used:,} of the model's {outputs:,} classes; "
            f"--head {used} puts a new last layer on it"
        )
    why = f"the data are {task}"
    if others and train.classes is not None:
        why += f": {', '.join(train.classes[:5])}" + (", …" if len(train.classes) > 5 else "")
    return _with_head(model, task.count, run.seed, why)


def numbered_classes(base: Base) -> tuple[str, ...] | None:
    """Names 0, 1, ... for the classes of a file that names none: what labels that are numbers mean."""
    dims = dims_of(base.model.graph.outputs[0])
    outputs = None if dims is None or len(dims) != 2 else dims[1]
    return tuple(map(str, range(outputs))) if isinstance(outputs, int) and outputs > 1 else None


def _with_head(model: ir.Model, outputs: int, seed: int, why: str) -> tuple[ir.Model, str]:
    changed, old, new = new_head(model, outputs, seed=seed)
    if old is None:
        return changed, f"head: {outputs:,} new outputs of the {new.inputs:,} that the file gives ({why})"
    return changed, f"head: {old.weight} had {old.classes:,} outputs, now {outputs:,} new ones ({why})"


def targets_of(run: RunConfig, model: ir.Model, train: Dataset) -> Targets:
    """Tasks and losses: as configured, or what the targets are.

    Each output that the data set has an input `<output>.target` for is trained on it; the data set's own
    targets belong to the first other output.

    Raises:
        ConfigError: targets and outputs do not fit, or a loss is unknown.
    """
    outputs = {v.name or "": v for v in model.graph.outputs}
    extra = [name.removesuffix(".target") for name in train.inputs if name.endswith(".target")]
    if unknown := [name for name in extra if name not in outputs]:
        raise ConfigError(
            f"data set {train.name!r} has targets of {unknown[0]!r}, the outputs are {', '.join(outputs)}"
        )
    own = next((name for name in outputs if name not in extra), None)
    if own is None:
        raise ConfigError("no output is left for the data set's own targets")
    tasks, losses, names = {}, {}, {}
    for name in (own, *extra):
        given = train.inputs[f"{name}.target"] if name != own else None
        task = infer_task(train, dims_of(outputs[name]), given)
        names[name], losses[name] = _loss_of(run, task, outputs[name], train if name == own else None)
        tasks[name] = task
    return Targets(tasks, losses, names)


def optimizer_of(run: RunConfig) -> Optimizer:
    """The optimizer; its learning rate scaled with the batch where a base batch is given.

    Source: P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, section 2.1.
    """
    options = run.optimizer.given()
    if "groups" in options:
        options["groups"] = [group.model_dump() for group in options["groups"]]
    optimizer = optimizer_named(run.optimizer.name, **options)
    if run.base_batch is None:
        return optimizer
    scaled = optimizer.learning_rate * run.batch_size / run.base_batch
    return optimizer_named(run.optimizer.name, **{**options, "learning_rate": scaled})


def schedule_of(run: RunConfig) -> Schedule:
    """The schedule of the learning rate."""
    return schedule_named(run.schedule.name, **run.schedule.given())


def averaging_of(run: RunConfig) -> Averaging | None:
    """The average of weights, if any.

    Raises:
        ConfigError: options without a name, or of another kind of average.
    """
    options = run.averaging.given()
    if run.averaging.name is None:
        if options:
            raise ConfigError(f"averaging.{next(iter(options))} needs averaging.name: ema or swa")
        return None
    return averaging_named(run.averaging.name, **options)


def clip_of(run: RunConfig) -> Clip | None:
    """Gradient clipping, if any."""
    if run.clip_norm is None and run.clip_value is None:
        return None
    return Clip(value=run.clip_value, norm=run.clip_norm)


def callbacks_of(run: RunConfig, *, first: bool = True) -> list[Callback]:
    """Early stopping and logs, as configured; folders are made.

    Args:
        run: what to do.
        first: whether this is rank 0: the others keep no logs.

    Raises:
        StorageError: a folder cannot be made.
        ConfigError: the TensorBoard log is not installed.
    """
    callbacks: list[Callback] = []
    if run.early_stopping.patience is not None:
        callbacks.append(EarlyStopping(run.early_stopping.monitor, run.early_stopping.patience))
    if run.log.csv is not None and first:
        callbacks.append(CSVLog(_with_folder(run.log.csv)))
    if run.log.tensorboard is not None and first:
        callbacks.append(TensorBoardLog(run.log.tensorboard))
    return callbacks


def checkpoints_of(run: RunConfig, written: Any, *, first: bool = True) -> Checkpoints | None:
    """The writer of checkpoints, as configured; `written` is called after each.

    Args:
        run: what to do.
        written: see above.
        first: whether this is rank 0: the others write nothing, and may have no such folder.

    Raises:
        StorageError: the folder cannot be made.
        ConfigError: `every` without a path.
    """
    if run.checkpoint.path is not None:
        path = _with_folder(run.checkpoint.path) if first else run.checkpoint.path
        return Checkpoints(path, run.checkpoint.every, written=written)
    if run.checkpoint.every is not None:
        raise ConfigError("checkpoint.every needs checkpoint.path")
    return None


def run_name(run: RunConfig) -> str:
    """DATA-MODEL, as a name of a folder."""
    data = re.sub(r"[^\w.-]+", "_", Path(run.data.spec.replace(":", "/")).name.split(".")[0]) or "data"
    model = Path(run.model.name)
    # every run's file is called model.onnx: the folder tells them apart
    folders = [part for part in model.parts[:-1] if not part.isdigit() and part not in ("/", ".", "..")]
    name = folders[-1] if model.name == "model.onnx" and folders else model.stem
    return f"{data}-{name}"


def output_of(run: RunConfig) -> Path:
    """Where the model goes; its folder is made now, before hours of training could be in vain.

    Without `output`, a new folder `runs/DATA-MODEL-NUMBER`, which no other run has.

    Raises:
        StorageError: the folder cannot be made.
        ConfigError: the file is there, and `overwrite` is not set.
    """
    if run.output is not None:
        path = _with_folder(run.output)
        if path.exists() and not run.overwrite:
            raise ConfigError(f"{path} is there already: choose another --output, or say --overwrite")
        return path
    name = run_name(run)
    root = Path("runs")
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = root / f"{name}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder / "model.onnx"
    except OSError as error:
        raise StorageError(f"folder {root} cannot be made: {error.strerror}") from None


def _loss_of(run: RunConfig, task: Task, output: ir.Value, train: Dataset | None) -> tuple[str, Loss]:
    name = run.loss.name if run.loss.name is not None and train is not None else task.loss
    dims = dims_of(output)
    if run.loss.name is None and task.kind == "binary" and dims is not None and dims[-1] == 1:
        name = "binary_cross_entropy"
    options = run.loss.given() if train is not None else {}
    if name == "cross_entropy" and task.axis != 1:
        options.setdefault("axis", task.axis)
    if options.get("class_weights") == "balanced":
        if train is None or train.targets is None or train.class_count is None or task.kind == "multi-label":
            raise ConfigError("balanced class weights need class labels")
        labels = train.targets.argmax(axis=1) if task.kind == "one-hot" else train.targets
        count = task.count if task.kind == "one-hot" else train.class_count
        labels = labels[labels != train.ignore_index] if train.ignore_index is not None else labels
        options["class_weights"] = balanced_class_weights(labels.reshape(-1), count)
    elif isinstance(given := options.get("class_weights"), dict):
        names = () if train is None or train.classes is None else train.classes
        if unknown := [each for each in given if each not in names]:
            raise ConfigError(
                f"there is a class weight for {unknown[0]!r}; the classes are {', '.join(names) or 'unknown'}"
            )
        options["class_weights"] = tuple(given.get(each, 1.0) for each in names)
    return name, loss_named(name, **options)


def _classes_of(provenance: Provenance | None) -> tuple[str, ...] | None:
    return None if provenance is None else provenance.class_names


def _with_folder(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"folder {path.parent} cannot be made: {error.strerror}") from None
    if path.is_dir():
        raise StorageError(f"{path} is a folder; a file is needed")
    return path


def _fitting(name: str, takes: Mapping[str, Any], train: Dataset, preparation: Preparation) -> dict[str, Any]:
    """Options of a network that follow from the data."""
    arrays = [a for key, a in train.inputs.items() if not key.endswith(".target")]
    if len(arrays) != 1:
        raise ConfigError(f"network {name!r} has one input, data set {train.name!r} has {len(arrays)}")
    shape = arrays[0].shape[1:]
    options: dict[str, Any] = {"num_classes": infer_task(train).count}
    if "vocabulary_size" in takes:
        if arrays[0].dtype.kind not in "iu" or len(shape) != 1:
            raise _unfit(name, "text (text:FILE) or integer tokens [N, T]", train, arrays[0].dtype, shape)
        text = preparation.text
        size = len(text.encoder) if text is not None else int(arrays[0].max()) + 1
        options |= {"vocabulary_size": size, "length": shape[0]}
    elif "bands" in takes:
        if len(shape) != 2 or arrays[0].dtype.kind != "f":
            raise _unfit(
                name, "spectrograms [N, bands, frames] (audio:FOLDER)", train, arrays[0].dtype, shape
            )
        options |= {"bands": shape[0], "frames": shape[1]}
    elif "image_size" in takes:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise _unfit(name, "square images [N, C, S, S]", train, arrays[0].dtype, shape)
        options |= {"channels": shape[0], "image_size": shape[1]}
    elif "input_shape" in takes:
        if arrays[0].dtype.kind != "f":
            raise _unfit(name, "numbers", train, arrays[0].dtype, shape)
        options["input_shape"] = shape
    if preparation.table is not None and "embedded" in takes:
        options["embedded"] = preparation.table.embedded
    if preparation.table is not None and "output_scale" in takes and train.task == "regression":
        assert train.targets is not None
        spread = train.targets.std(axis=0)
        options["output_scale"] = np.where(spread > 0, spread, 1.0).tolist()
        options["output_mean"] = train.targets.mean(axis=0).tolist()
    return options


def _unfit(name: str, what: str, data: Dataset, dtype: np.dtype[Any], shape: Sequence[int]) -> ConfigError:
    dims = ", ".join(("N", *map(str, shape)))
    return ConfigError(f"network {name!r} takes {what}; data set {data.name!r} has {dtype}[{dims}]")


def prepared_parts(parts: Splits, preparation: Preparation, targets: Targets) -> Splits:
    """The parts as the network and the losses take them."""
    return parts.map(lambda part: targets.fitted(preparation.apply(part)))

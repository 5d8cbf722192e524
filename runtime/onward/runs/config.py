"""What a training run is: its configuration, as an object, a TOML file, or options over one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onward.errors import ConfigError
from onward.runs.options import Option

__all__ = ["DataTable", "RunConfig", "read_run", "run_of", "to_toml"]

_SHORT = {
    "model": "name",
    "data": "spec",
    "loss": "name",
    "optimizer": "name",
    "schedule": "name",
    "averaging": "name",
}
"""Tables that a file may give as a text alone: `model = "lenet5"`."""
_REQUIRED = dict.fromkeys(("model", "model.name"), "a model") | dict.fromkeys(
    ("data", "data.spec"), "a data set (--data)"
)

_Positive = Annotated[int, Field(gt=0)]
_Seed = Annotated[int, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def given(self) -> dict[str, Any]:
        """The fields that are set, as keyword arguments for what they describe; `name` left out."""
        return {key: value for key, value in self if value is not None and key != "name"}


@final
class ModelTable(_Table):
    """`[model]`: a name of the zoo with its options, or the path of an .onnx file."""

    name: Annotated[str, Option("A network of the zoo or an .onnx file.", name="model", argument=True)]
    options: Annotated[
        dict[str, Any],
        Option("An option of the network: width=0.5.", name="option", short=("-o",), form="assignments"),
    ] = {}
    head: Annotated[
        _Positive | None,
        Option(
            "Put a new last layer with this many outputs on an .onnx file; by itself where classes differ."
        ),
    ] = None
    shapes: Annotated[
        dict[str, Any],
        Option(
            "Extents of an input that the .onnx file leaves open: image=N,3,224,224; repeatable.",
            form="assignments",
        ),
    ] = {}
    constants: Annotated[
        dict[str, Any],
        Option(
            "An input of the .onnx file that always has these contents: rate=16000, or mask=FILE.npy; "
            "repeatable.",
            form="assignments",
        ),
    ] = {}
    sample_axis: Annotated[
        tuple[str, ...],
        Option(
            "Where samples lie in the .onnx file: 1 for all inputs and outputs, or x=1, repeatable; the new "
            "file has them along axis 0.",
            form="repeat",
        ),
    ] = ()
    trainable: Annotated[
        tuple[str, ...] | None, Option("Train only weights of this pattern; repeatable.", form="repeat")
    ] = None
    freeze: Annotated[
        tuple[str, ...], Option("Leave weights of this pattern as they are; repeatable.", form="repeat")
    ] = ()


@final
class DataTable(_Table):
    """`[data]`: where the samples come from, how they are divided and prepared."""

    spec: Annotated[
        str,
        Option(
            "A table (.csv, .tsv, .jsonl, .parquet, .feather, sqlite:FILE?query=SELECT...), images:FOLDER, "
            "audio:FOLDER, text:FILE, npz:FILE, npy:FOLDER, idx:FOLDER, batches:FOLDER (an .npz for each, "
            "given whole), or digits, iris, wine, breast_cancer, diabetes.",
            name="data",
        ),
    ]
    target: Annotated[
        str | tuple[str, ...] | None,
        Option("The column or array to predict; several columns of a table with commas."),
    ] = None
    include: Annotated[
        tuple[str, ...] | None, Option("Learn from these columns of a table alone.", form="list")
    ] = None
    exclude: Annotated[tuple[str, ...], Option("Columns of a table to leave out.", form="list")] = ()
    columns: Annotated[
        dict[str, dict[str, Any]],
        Option(
            "What becomes of a column: age:impute=mean,scale=log or city:encode=hashing or id:drop; "
            "repeatable.",
            name="column",
            form="columns",
        ),
    ] = {}
    group: Annotated[str | None, Option("A column whose equal values stay in one part of the data.")] = None
    time: Annotated[
        str | None, Option("A column that orders rows: the latest are the last part of the data.")
    ] = None
    weight: Annotated[str | None, Option("A column that says how much each row counts in the loss.")] = None
    skip_bad_rows: Annotated[
        bool, Option("Leave out, and count, rows of a table that cannot be read.", only_on=True)
    ] = False
    task: Annotated[
        Literal["classification", "regression"] | None, Option("By default what the targets are.")
    ] = None
    text: Annotated[str | None, Option("The column that holds the text.")] = None
    image_size: Annotated[_Positive | None, Option("The side of an image.")] = None
    channels: Annotated[_Positive | None, Option("1 for grey, 3 for colour images.")] = None
    fit: Annotated[Literal["stretch", "crop", "pad"], Option("How an image is brought to its size.")] = (
        "stretch"
    )
    skip_bad_files: Annotated[
        bool, Option("Leave out, and count, images and sounds that cannot be decoded.", only_on=True)
    ] = False
    rate: Annotated[_Positive | None, Option("Samples of a sound a second (16000).")] = None
    seconds: Annotated[
        Annotated[float, Field(gt=0)] | None, Option("Length of a sound; by default the longest, at most 10.")
    ] = None
    limit: Annotated[
        _Positive | None, Option("Use this many rows of a text file, or images of an idx: folder.")
    ] = None
    drop_duplicates: Annotated[
        bool, Option("Leave out rows of a text file that repeat text and label of an earlier one.")
    ] = False
    split: Annotated[
        tuple[float, float, float], Option("Fractions: train,validation,test.", form="numbers")
    ] = (0.8, 0.1, 0.1)
    split_seed: Annotated[_Seed, Option("Decides which sample goes where.")] = 0
    normalise: Annotated[bool, Option("Zero mean, unit variance, measured on the training part.")] = True
    augment: Annotated[
        str | None, Option("Such as flip,shift=2,crop=4,rotate=10,noise=0.05,cutout=8,erase,mixup=0.2.")
    ] = None
    tokens: Annotated[_Positive, Option("Tokens of a text; longer ones are cut.")] = 64
    tokenizer: Annotated[
        Literal["words", "bpe", "wordpiece"],
        Option("Words of Unicode, or parts of words (the last two need onward[text])."),
    ] = "words"
    vocabulary_size: Annotated[int, Field(gt=1), Option("Tokens that are known.")] = 20_000
    min_count: Annotated[_Positive, Option("Leave rarer words out.")] = 2


@final
class LossTable(_Table):
    """`[loss]`; without a name it follows from the task."""

    name: Annotated[
        str | None,
        Option(
            "cross_entropy, binary_cross_entropy, mse, l1, huber, kl_divergence; by default what fits the "
            "task.",
            name="loss",
        ),
    ] = None
    label_smoothing: Annotated[float | None, Option("Of cross-entropy.")] = None
    class_weights: Annotated[
        tuple[float, ...] | Literal["balanced"] | dict[str, float] | None,
        Option(
            "balanced, one number a class, or CLASS=NUMBER with commas, others 1.",
            short=("--class-weight",),
            form="weights",
        ),
    ] = None
    ignore_index: int | None = None
    axis: Literal[1, -1] | None = None
    positive_weight: float | None = None
    delta: float | None = None


@final
class GroupTable(_Table):
    """`[[optimizer.groups]]`: parameters with a rate factor or weight decay of their own."""

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None


@final
class OptimizerTable(_Table):
    """`[optimizer]`; what is not set keeps the optimizer's own default."""

    name: Annotated[str, Option("sgd, adam, adamw, rmsprop, adagrad.", name="optimizer")] = "adam"
    learning_rate: Annotated[float | None, Option("Of the optimizer.", short=("--lr",))] = None
    weight_decay: Annotated[float | None, Option("Of the optimizer.")] = None
    momentum: Annotated[float | None, Option("Of sgd and rmsprop.")] = None
    nesterov: Annotated[bool | None, Option("Nesterov's form of momentum.", only_on=True)] = None
    beta1: Annotated[float | None, Option("Of adam and adamw.")] = None
    beta2: Annotated[float | None, Option("Of adam and adamw.")] = None
    epsilon: Annotated[float | None, Option("Of all but sgd.")] = None
    rho: Annotated[float | None, Option("Of rmsprop.")] = None
    initial_accumulator: float | None = None
    inner_epsilon: bool | None = None
    groups: tuple[GroupTable, ...] | None = None


@final
class ScheduleTable(_Table):
    """`[schedule]` of the learning rate."""

    name: Annotated[str, Option("constant, step, exponential, cosine, plateau.", name="schedule")] = (
        "constant"
    )
    warmup: Annotated[int | None, Option("Updates until the full learning rate.")] = None
    every: Annotated[int | None, Option("Epochs between steps.", name="schedule-every")] = None
    gamma: Annotated[float | None, Option("Factor of step, exponential, plateau.")] = None
    minimum: Annotated[float | None, Option("Lowest factor of cosine and plateau.")] = None
    epochs: Annotated[
        int | None, Option("Length of cosine, if it is not the run's.", name="schedule-epochs")
    ] = None
    patience: int | None = None
    threshold: float | None = None


@final
class AveragingTable(_Table):
    """`[averaging]` of weights over the run: the average is what is validated and exported."""

    name: Annotated[
        Literal["ema", "swa"] | None,
        Option(
            "Export an average of weights: of updates (ema) or of the ends of epochs (swa).", name="averaging"
        ),
    ] = None
    decay: Annotated[float | None, Option("Of ema: 0.999.", name="averaging-decay")] = None
    warmup: bool | None = None
    start: Annotated[
        float | None,
        Option("Of swa: the first epoch, or the share of epochs before it: 0.75.", name="averaging-start"),
    ] = None
    learning_rate: Annotated[
        float | None,
        Option("Of swa: factor of the learning rate from its start on.", name="averaging-rate"),
    ] = None


@final
class LoraTable(_Table):
    """`[lora]`: low-rank adapters on the products of an .onnx file, whose own weights stay."""

    rank: _Positive = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("*",)
    export: Literal["merged", "adapter"] = "merged"


@final
class PruningTable(_Table):
    """`[pruning]`; off without a sparsity."""

    sparsity: Annotated[
        float | None, Option("Prune weights of smallest magnitude until this share is 0.", name="sparsity")
    ] = None
    start: Annotated[float | None, Option("Share of updates before pruning: 0.", name="pruning-start")] = None
    end: Annotated[
        float | None, Option("Share of updates at which the sparsity is there: 0.75.", name="pruning-end")
    ] = None
    every: _Positive | None = None
    targets: tuple[str, ...] | None = None
    scope: Annotated[
        Literal["layer", "global"] | None,
        Option("Whether each weight gets the sparsity (layer) or all together.", name="pruning-scope"),
    ] = None


@final
class DistillationTable(_Table):
    """`[distillation]` from a teacher; off without one."""

    teacher: Annotated[
        Path | None, Option("Learn from the scores of this .onnx file too.", name="teacher")
    ] = None
    alpha: Annotated[
        float | None, Option("Share of the labels in the loss, the rest is the teacher's: 0.5.", name="alpha")
    ] = None
    temperature: Annotated[float | None, Option("That both scores are divided by: 2.")] = None


@final
class CheckpointTable(_Table):
    """`[checkpoint]`: the file, and after how many steps it is written (without: after each epoch)."""

    path: Annotated[Path | None, Option("Keep a checkpoint in this file.", name="checkpoint")] = None
    every: Annotated[
        _Positive | None, Option("Steps between checkpoints; else each epoch.", name="checkpoint-every")
    ] = None


@final
class StoppingTable(_Table):
    """`[early_stopping]`; off without a patience."""

    patience: Annotated[
        Annotated[int, Field(ge=0)] | None, Option("Stop after so many epochs without improvement.")
    ] = None
    monitor: Annotated[str, Option("The figure to watch.")] = "val_loss"


@final
class LogTable(_Table):
    """`[log]`: the history as a CSV file and as TensorBoard events, and whole runs in trackers."""

    csv: Annotated[Path | None, Option("The history as CSV.", name="csv-log")] = None
    tensorboard: Annotated[Path | None, Option("A folder for TensorBoard events.")] = None
    track: Annotated[
        Path | None, Option("Record each run in a folder of its own below this one: CSV, JSON, model.")
    ] = None
    mlflow: Annotated[
        str | None, Option("Record the run in MLflow: sqlite:///mlflow.db or a server's address.")
    ] = None
    experiment: Annotated[str, Option("Of MLflow.")] = "onward"


@final
class RunConfig(_Table):
    """A whole training run: frozen and validated, read by `read_run` and run by `execute`."""

    model: ModelTable
    data: DataTable
    output: Annotated[
        Path | None, Option("The model's file; by default runs/DATA-MODEL-NUMBER/model.onnx, a new folder.")
    ] = None
    overwrite: Annotated[bool, Option("Replace the output if it is there.", only_on=True)] = False
    preparation: Annotated[
        bool,
        Option("Export a graph that takes inputs as they are read; else the bare network."),
    ] = True
    folds: Annotated[
        Annotated[int, Field(ge=2)] | None,
        Option("Also measure on so many parts in turn, each by a network trained on the others."),
    ] = None
    prefetch: Annotated[
        Annotated[int, Field(ge=0)],
        Option("Batches that a thread reads ahead, of data that are read during the run."),
    ] = 2
    workers: Annotated[
        Annotated[int, Field(ge=0)], Option("Processes that read such data; 0: that thread alone.")
    ] = 0
    epochs: Annotated[_Positive, Option("Passes over the training part.")] = 10
    batch_size: Annotated[_Positive, Option("Samples a step.")] = 32
    seed: Annotated[_Seed, Option("Of first weights, order, dropout.")] = 0
    metrics: Annotated[
        tuple[str, ...] | None,
        Option("Such as accuracy,top5,f1; by default what fits the task.", form="list"),
    ] = None
    accumulate: Annotated[_Positive, Option("Batches an update.")] = 1
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, Option("Joint norm of the gradients.")] = None
    clip_value: Annotated[Annotated[float, Field(gt=0)] | None, Option("Size of each gradient element.")] = (
        None
    )
    engine: Annotated[Literal["auto", "compiled", "interpreter"], Option("What runs the training step.")] = (
        "auto"
    )
    threads: Annotated[_Positive | None, Option("Of the compiled engine; else all cores.")] = None
    parallel: Annotated[
        Literal["auto", "mpi", "none"],
        Option("Divide batches among MPI ranks; by default where mpirun has started several."),
    ] = "auto"
    base_batch: Annotated[
        _Positive | None,
        Option("The batch size that the learning rate is for: scaled linearly to --batch-size."),
    ] = None
    synchronise: Annotated[
        bool, Option("With ranks: batch normalization by the whole batch.", only_on=True)
    ] = False
    exchange: Annotated[
        Literal["float32", "bfloat16"],
        Option("With ranks: the type in which gradients travel; they are summed as float32."),
    ] = "float32"
    shard: Annotated[bool, Option("With ranks: divide the optimizer's state among them.", only_on=True)] = (
        False
    )
    winograd: Annotated[
        Literal[2, 4], Option("2, or 4: faster wide 3x3 convolutions, six times the rounding error.")
    ] = 2
    loss_weights: Annotated[
        dict[str, float],
        Option(
            "How much the loss of one of several outputs counts in their sum: boxes=0.5; repeatable.",
            name="loss-weight",
            form="assignments",
        ),
    ] = {}
    weighted_mean: Annotated[
        Literal["weights", "samples"],
        Option("What a loss with sample weights is divided by: their sum, or the number of samples."),
    ] = "weights"
    loss: LossTable = LossTable()
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    averaging: AveragingTable = AveragingTable()
    lora: Annotated[
        LoraTable | None,
        Option(
            "Train adapters on an .onnx file: rank=8,alpha=16,targets=*query*|*value*,export=adapter.",
            form="fields",
        ),
    ] = None
    pruning: PruningTable = PruningTable()
    distillation: DistillationTable = DistillationTable()
    checkpoint: CheckpointTable = CheckpointTable()
    early_stopping: StoppingTable = StoppingTable()
    log: LogTable = LogTable()
    search: dict[str, Any] = {}
    """`[search]`, which `onward tune` reads."""

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values, without what is not set."""
        values: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in values.items() if value != {}}

    def chosen(self) -> dict[str, Any]:
        """The same without what nobody set: defaults that follow from the data stay open."""
        values: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        return {key: value for key, value in values.items() if value != {}}


def read_run(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """The run of a TOML file with the command line's options over it.

    Args:
        file: the TOML file; None: there is none.
        overrides: values by dotted key, such as `optimizer.learning_rate`; None counts as not given.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or a value does not fit.
    """
    merged = {} if file is None else _tables(_read_toml(file))
    for key, value in overrides.items():
        if value is None:
            continue
        *path, last = key.split(".")
        table = merged
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{file}: {part!r} must be a table")
        known = table.get(last)
        table[last] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    return _validated(merged, str(file or "options"))


def run_of(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """The run that JSON values describe, with the keys and short forms of a TOML file.

    Args:
        values: as `RunConfig.plain` gives them.
        source: what error texts call them.

    Raises:
        ConfigError: a key is unknown or missing, or a value does not fit.
    """
    return _validated(_tables(values), source)


def to_toml(run: RunConfig, *, whole: bool = True) -> str:
    """The run as a TOML file that `read_run` reads back; not `whole`: what was set alone."""
    lines: list[str] = []
    _write_table(lines, run.plain() if whole else run.chosen(), "")
    return "\n".join(lines) + "\n"


def _tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with tables in the place of their short forms."""
    return {
        key: {_SHORT[key]: value} if key in _SHORT and isinstance(value, str) else value
        for key, value in values.items()
    }


def _validated(values: Mapping[str, Any], source: str) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_problems(error)}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _problems(error: ValidationError) -> str:
    texts = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            texts.append(f"unknown key {key!r}")
        elif problem["type"] == "missing":
            what = _REQUIRED.get(key)
            texts.append(f"{what} is missing" if what else f"{key!r} is missing")
        else:
            texts.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(dict.fromkeys(texts))


def _write_table(lines: list[str], table: Mapping[str, Any], name: str) -> None:
    scalars = {k: v for k, v in table.items() if not isinstance(v, dict) and not _is_tables(v)}
    if name and (scalars or not table):
        lines += ["", f"[{name}]"] if lines else [f"[{name}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        full = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, dict):
            if value:
                _write_table(lines, value, full)
        elif _is_tables(value):
            for entry in value:
                lines += ["", f"[[{full}]]", *(f"{_key(k)} = {_value(v)}" for k, v in entry.items())]


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""`onward train`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onward.errors import ConfigError

if TYPE_CHECKING:
    from onward.runs.config import RunConfig

__all__ = ["command", "listed", "numbers"]

_DATA, _MODEL, _OPTIMISER = "Data", "Model and loss", "Optimisation"
_RECORD = "Record"

_KEYS = {
    "model": "model.name",
    "option": "model.options",
    "trainable": "model.trainable",
    "freeze": "model.freeze",
    "data": "data.spec",
    "target": "data.target",
    "task": "data.task",
    "text": "data.text",
    "image_size": "data.image_size",
    "channels": "data.channels",
    "tokens": "data.tokens",
    "vocabulary_size": "data.vocabulary_size",
    "limit": "data.limit",
    "split": "data.split",
    "split_seed": "data.split_seed",
    "normalise": "data.normalise",
    "augment": "data.augment",
    "loss": "loss.name",
    "label_smoothing": "loss.label_smoothing",
    "class_weights": "loss.class_weights",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "optimizer": "optimizer.name",
    "learning_rate": "optimizer.learning_rate",
    "momentum": "optimizer.momentum",
    "nesterov": "optimizer.nesterov",
    "weight_decay": "optimizer.weight_decay",
    "beta1": "optimizer.beta1",
    "beta2": "optimizer.beta2",
    "epsilon": "optimizer.epsilon",
    "alpha": "optimizer.alpha",
    "schedule": "schedule.name",
    "warmup": "schedule.warmup",
    "schedule_every": "schedule.every",
    "gamma": "schedule.gamma",
    "minimum": "schedule.minimum",
    "clip_norm": "clip_norm",
    "clip_value": "clip_value",
    "accumulate": "accumulate",
    "seed": "seed",
    "engine": "engine",
    "threads": "threads",
    "winograd": "winograd",
    "metrics": "metrics",
    "patience": "early_stopping.patience",
    "monitor": "early_stopping.monitor",
    "checkpoint": "checkpoint.path",
    "checkpoint_every": "checkpoint.every",
    "csv_log": "log.csv",
    "tensorboard": "log.tensorboard",
    "output": "output",
}
"""The configuration key that each option sets."""


def command(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A network of the zoo or an .onnx file.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, iris, wine, breast_cancer, diabetes, idx:FOLDER, csv:FILE, npz:FILE, "
            "images:FOLDER or text:FILE.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; options come before it.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the whole configuration as TOML and stop.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="The column or array to predict.", rich_help_panel=_DATA)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or regression.", rich_help_panel=_DATA)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The column that holds the text.", rich_help_panel=_DATA)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="The side of an image.", rich_help_panel=_DATA)
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="1 for grey, 3 for colour images.", rich_help_panel=_DATA)
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Words of a text (64).", rich_help_panel=_DATA)] = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="Words that are known (20000).", rich_help_panel=_DATA)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use this many rows of a text file.", rich_help_panel=_DATA)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Fractions: train,validation,test (0.8,0.1,0.1).", rich_help_panel=_DATA),
    ] = None,
    split_seed: Annotated[
        int | None, typer.Option(help="Decides which sample goes where (0).", rich_help_panel=_DATA)
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(help="Zero mean, unit variance, measured on the training part.", rich_help_panel=_DATA),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Such as flip,shift=2,crop=4,rotate=10,noise=0.05,cutout=8.", rich_help_panel=_DATA
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="An option of the network: width=0.5.", rich_help_panel=_MODEL),
    ] = None,
    trainable: Annotated[
        list[str] | None,
        typer.Option(help="Train only weights of this pattern; repeatable.", rich_help_panel=_MODEL),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Leave weights of this pattern as they are; repeatable.", rich_help_panel=_MODEL),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross_entropy, binary_cross_entropy, mse, l1, huber, kl_divergence; "
            "by default what fits the task.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Of cross-entropy.", rich_help_panel=_MODEL)
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="balanced, or one number a class.", rich_help_panel=_MODEL)
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Such as accuracy,top5,f1; by default accuracy or mae.", rich_help_panel=_MODEL),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="(10)", rich_help_panel=_OPTIMISER)] = None,
    batch_size: Annotated[int | None, typer.Option(help="(32)", rich_help_panel=_OPTIMISER)] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd, adam, adamw, rmsprop, adagrad (adam).", rich_help_panel=_OPTIMISER),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", rich_help_panel=_OPTIMISER)
    ] = None,
    momentum: Annotated[float | None, typer.Option(rich_help_panel=_OPTIMISER)] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov", rich_help_panel=_OPTIMISER)] = None,
    weight_decay: Annotated[float | None, typer.Option(rich_help_panel=_OPTIMISER)] = None,
    beta1: Annotated[float | None, typer.Option(rich_help_panel=_OPTIMISER)] = None,
    beta2: Annotated[float | None, typer.Option(rich_help_panel=_OPTIMISER)] = None,
    epsilon: Annotated[float | None, typer.Option(rich_help_panel=_OPTIMISER)] = None,
    alpha: Annotated[float | None, typer.Option(help="Of rmsprop.", rich_help_panel=_OPTIMISER)] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="constant, step, exponential, cosine, plateau (constant).", rich_help_panel=_OPTIMISER
        ),
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Updates until the full learning rate.", rich_help_panel=_OPTIMISER)
    ] = None,
    schedule_every: Annotated[
        int | None, typer.Option(help="Epochs between steps.", rich_help_panel=_OPTIMISER)
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Factor of step, exponential, plateau.", rich_help_panel=_OPTIMISER)
    ] = None,
    minimum: Annotated[
        float | None,
        typer.Option(help="Lowest factor of cosine and plateau.", rich_help_panel=_OPTIMISER),
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Joint norm of the gradients.", rich_help_panel=_OPTIMISER)
    ] = None,
    clip_value: Annotated[
        float | None, typer.Option(help="Size of each gradient element.", rich_help_panel=_OPTIMISER)
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches an update (1).", rich_help_panel=_OPTIMISER)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of first weights, order, dropout (0).", rich_help_panel=_OPTIMISER),
    ] = None,
    engine: Annotated[
        Literal["auto", "compiled", "interpreter"] | None,
        typer.Option(help="What runs the training step (auto).", rich_help_panel=_OPTIMISER),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Of the compiled engine; else all cores.", rich_help_panel=_OPTIMISER),
    ] = None,
    winograd: Annotated[
        int | None,
        typer.Option(
            help="2, or 4: faster wide 3x3 convolutions, six times the rounding error (2).",
            rich_help_panel=_OPTIMISER,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without improvement.", rich_help_panel=_OPTIMISER),
    ] = None,
    monitor: Annotated[
        str | None, typer.Option(help="The figure to watch (val_loss).", rich_help_panel=_OPTIMISER)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep a checkpoint in this file.", rich_help_panel=_RECORD)
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints; else each epoch.", rich_help_panel=_RECORD),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on from this checkpoint.", rich_help_panel=_RECORD)
    ] = None,
    csv_log: Annotated[Path | None, typer.Option(help="The history as CSV.", rich_help_panel=_RECORD)] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="A folder for TensorBoard events.", rich_help_panel=_RECORD)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The model (runs/<name>/model.onnx).", rich_help_panel=_RECORD)
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option(help="A progress bar; by default on a terminal.", rich_help_panel=_RECORD),
    ] = None,
) -> None:
    """Train a network on a data set, measure it, and export it verified.

    Ends with figures on the part of the data that training never saw.

    The model carries how its inputs are prepared, its classes, and where it comes from.

    \b
    Examples:
      onward train lenet5 --data digits --epochs 12
      onward train lenet5 --data idx:mnist_10k --split 0.8,0,0.2 --schedule cosine
      onward train textcnn --data text:reviews.csv.gz --tokens 50 --epochs 4
      onward train mlp --data csv:prices.csv --target price --task regression
      onward train pretrained.onnx --data images:photos --freeze "features.*"
      onward train --config run.toml --checkpoint run.ckpt --resume run.ckpt

    \b
    The same as a file:
      model = "lenet5"
      data = "digits"
      epochs = 12
      optimizer = { name = "adamw", learning_rate = 0.002 }
    """
    from onward.runs.config import read_run, to_toml

    run = read_run(config, _overrides(ctx.params))
    if print_config:
        print(to_toml(run), end="")
        return
    _train(run, resume, progress)


def _overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: options[name] for name, key in _KEYS.items()}
    for key in ("model.trainable", "model.freeze"):
        values[key] = values[key] or None
    if values["metrics"] is not None:
        values["metrics"] = listed(values["metrics"])
    if values["data.split"] is not None:
        values["data.split"] = numbers("--split", values["data.split"])
    weights = values["loss.class_weights"]
    if weights is not None and weights != "balanced":
        values["loss.class_weights"] = numbers("--class-weights", weights)
    values["model.options"] = dict(_assignment(text) for text in values["model.options"] or []) or None
    return values


def listed(text: str) -> list[str]:
    """The parts of a text with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(option: str, text: str) -> list[float]:
    """The numbers of an option's text with commas.

    Raises:
        ConfigError: names the option.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: numbers with commas between them are needed") from None


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--option {text!r}: NAME=VALUE is needed")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _train(run: RunConfig, resume: Path | None, progress: bool | None) -> None:
    from rich.console import Console

    from onward.cli import assembly
    from onward.runs.measures import final_activation, measure
    from onward.runs.preparation import Preparation, read_data
    from onward.data import Loader, parse_augmentation
    from onward.engine import CompileOptions
    from onward.train import Trainer

    console = Console()
    output = assembly.output_of(run)
    source = read_data(run.data)
    parts = source.split(run.data.split, run.data.split_seed)
    prepared = Preparation.fit(parts.train, run.data, assembly.known_preparation(run))
    loss = assembly.loss_of(run, parts.train)
    parts = parts.map(lambda part: assembly.for_loss(prepared.apply(part), loss))
    model = assembly.model_of(run, parts.train, prepared)
    regression = parts.train.task == "regression"
    trainer = Trainer(
        model,
        loss,
        assembly.optimizer_of(run),
        metrics=run.metrics if run.metrics is not None else (["mae"] if regression else ["accuracy"]),
        schedule=assembly.schedule_of(run),
        clip=assembly.clip_of(run),
        accumulate=run.accumulate,
        trainable=run.model.trainable,
        freeze=run.model.freeze,
        seed=run.seed,
        engine=run.engine,
        threads=run.threads,
        options=CompileOptions(run.winograd),
    )
    shown = sys.stdout.isatty() if progress is None else progress
    callbacks = assembly.callbacks_of(run)
    if not shown:
        callbacks.insert(0, assembly.EpochLines())
    augment = None if run.data.augment is None else parse_augmentation(run.data.augment)
    loader = Loader(parts.train, run.batch_size, run.seed, augment=augment)
    sizes = [len(part) for part in (parts.train, parts.validation, parts.test) if part is not None]
    print(
        f"{run.model.name}: {sum(a.size for a in trainer.weights().values()):,} weights, "
        f"{run.data.spec}: {' + '.join(f'{size:,}' for size in sizes)} samples",
        flush=True,
    )
    try:
        trainer.fit(
            loader,
            validation=parts.validation,
            epochs=run.epochs,
            callbacks=callbacks,
            resume=resume,
            progress=shown,
        )
    except KeyboardInterrupt:
        print(_interrupted(run), file=sys.stderr)
        raise typer.Exit(130) from None
    if trainer.stopped:
        print(f"stopped early: {trainer.stopped}")
    held = parts.test if parts.test is not None else parts.validation
    figures: dict[str, float] = {}
    if held is not None:
        title = "test" if parts.test is not None else "validation"
        outputs = trainer.predict(held)[trainer.outputs[0].name]
        threshold = 0.5 if final_activation(trainer.model) == "Sigmoid" else 0.0
        found = measure(outputs, held, extra=run.metrics or (), threshold=threshold)
        figures = {f"{title}_{name}": value for name, value in found.figures.items()}
        found.show(console, f"{run.model.name} on {run.data.spec}, {title} part")
    sample = parts.train if held is None else held
    report = _export(run, trainer, source.dataset, sample, prepared, figures, output)
    print(f"{output}: written; {report}")


def _export(
    run: RunConfig,
    trainer: Any,
    whole: Any,
    sample: Any,
    prepared: Any,
    figures: Mapping[str, float],
    output: Path,
) -> Any:
    from datetime import UTC, datetime

    from onward.runs.preparation import feeds_of
    from onward.model import Provenance, current_versions
    from onward.verify import export

    normalization = prepared.normalization
    provenance = Provenance(
        data_hash=f"sha256:{whole.digest()}",
        created=datetime.now(UTC),
        split_seed=run.data.split_seed,
        configuration={**run.plain(), "task": whole.task},
        metrics=figures,
        versions=current_versions(),
        normalisation=None if normalization is None else normalization.to_json(),
        vocabulary=prepared.tokens_by_index,
        class_names=whole.classes,
    )
    inputs = {name: a[:8] for name, a in feeds_of(sample, trainer.inputs).items()}
    return export(trainer.model, output, provenance=provenance, inputs=inputs)


def _interrupted(run: RunConfig) -> str:
    path = run.checkpoint.path
    if path is None or not path.exists():
        return "interrupted; there is no checkpoint (--checkpoint FILE keeps one)"
    return f"interrupted; go on with --resume {path}"

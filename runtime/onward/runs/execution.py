"""Does a run: reads, trains, measures, exports; tells what happens and stops when it is told to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from onward.charts import Chart
from onward.data import (
    Batches,
    Dataset,
    Kind,
    Loader,
    Preparation,
    Source,
    Splits,
    StreamLoader,
    folds,
    parse_augmentation,
)
from onward.data.registry import is_table
from onward.engine import CompileOptions, Session
from onward.errors import ConfigError, DataError
from onward.graph import Array, dims_of
from onward.model import atomic_write
from onward.parallel import Group, ranks_of
from onward.runs import assembly
from onward.runs.config import LogTable, RunConfig
from onward.runs.evaluation import evaluate
from onward.runs.events import (
    ColumnsPrepared,
    DataRead,
    Event,
    Finished,
    FoldMeasured,
    Measured,
    Pruned,
    RanksTimed,
    Started,
    Warned,
)
from onward.runs.exporting import export_run, now
from onward.runs.measures import final_activation, measure
from onward.runs.preparation import (
    align_classes,
    digest_of,
    fit_preparation,
    images_as_taken,
    known_columns,
    plain_numbers,
    read_data,
)
from onward.runs.report import evaluation_chart
from onward.runs.streamed import Streamed, open_stream
from onward.runs.tables import columns_text, tabular_defaults
from onward.runs.telling import Bridge, CancelToken, Listener
from onward.runs.tracking import tracked
from onward.runs.whole import Whole, answered, open_whole, refuse_divided
from onward.train import Callback, History, RateFinding, Trainer
from onward.train.task import default_metrics, describe
from onward.verify import Report

__all__ = ["CancelToken", "RunResult", "execute", "find_learning_rate"]

_OWN = ("output", "overwrite", "log", "threads")
"""Options of which each rank may have its own."""


@final
@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run left behind.

    Attributes:
        finished: how it ended.
        trainer: with the trained weights; None where the run was cancelled before there was one.
        history: one row an epoch.
        figures: on the part that training never saw, as in the model's metadata.
        report: of the comparison with onnxruntime; None where nothing was exported.
    """

    finished: Finished
    trainer: Trainer | None
    history: History
    figures: Mapping[str, float]
    report: Report | None

    def plot(self) -> Chart:
        """The run's curves, and the model's answers on the part that training never saw, for a notebook.

        The confusion matrix, ROC, precision against recall, calibration and wrong samples are measured with
        the model's file; where none was written, there are the curves alone.

        Raises:
            OnwardError: the file or its data cannot be read any more.
        """
        if self.finished.output is None:
            return self.history.plot()
        return evaluation_chart(evaluate(self.finished.output), self.history.rows)


def execute(
    config: RunConfig,
    *,
    events: Listener | None = None,
    cancel: CancelToken | None = None,
    resume: str | Path | None = None,
) -> RunResult:
    """Do a run in this thread: the command line, a job of a server and a notebook call the same.

    The model that is written follows from the configuration and the data alone, to the byte; the time in its
    metadata is `SOURCE_DATE_EPOCH`'s where that is set.

    Args:
        config: what to do.
        events: called in this thread with each event, in order; what it raises ends the run.
        cancel: when it is cancelled, the run stops after its step, keeps a checkpoint if the configuration
            names one, and exports nothing.
        resume: a checkpoint to go on from; the run then equals one that never stopped. "auto": the one that
            the configuration names, if it is there, as a job that is started again by a cluster needs it.

    Raises:
        OnwardError: whatever is wrong with configuration, data or files; before the first step where that
            can be known.
    """
    group = ranks_of(config.parallel)
    first = group is None or group.rank == 0
    tell: Listener = events if events is not None and first else _silent
    token = cancel if cancel is not None else CancelToken()
    if group is not None:
        group.check_same(_options(config, resume))
    if first:
        _refuse_early(config)
    if resume == "auto":
        resume = _kept(config, group)
    with tracked(config, tell) if first else contextlib.nullcontext(tell) as told:
        ready = _ready(config, told, token)
        if ready is None:
            finished = Finished("cancelled", token.reason, None, None)
            told(finished)
            return RunResult(finished, None, History(), {}, None)
        return _finish(ready, told, token, resume)


def find_learning_rate(
    config: RunConfig,
    *,
    events: Listener | None = None,
    start: float = 1e-6,
    end: float = 10.0,
    steps: int = 100,
) -> RateFinding:
    """Try learning rates on the run's network and training part, from low to high, and suggest one.

    Nothing is written. `Trainer.find_learning_rate` says how it is done.

    Args:
        config: the run; its own learning rate and schedule do not count.
        events: called with what is said of data and model.
        start, end, steps: see `Trainer.find_learning_rate`.

    Raises:
        OnwardError: as `execute`.
    """
    group = ranks_of(config.parallel)
    first = group is None or group.rank == 0
    if group is not None:
        group.check_same(_options(config, None))
    tell: Listener = events if events is not None and first else _silent
    ready = _ready(config.model_copy(update={"folds": None}), tell, CancelToken())
    assert ready is not None
    return ready.setup.trainer.find_learning_rate(ready.loader, start=start, end=end, steps=steps)


@final
@dataclass(frozen=True, eq=False)
class _Ready:
    """A run before its first step.

    Attributes:
        config: what to do, with what followed from the data.
        setup: the trainer and what was measured.
        loader: the training part.
        validation: evaluated after each epoch.
        answers: the outputs for the part that is measured, and that part.
        title: what that part is called.
        digest: of the data, for a preparation by the model's input names.
        sample: as read, of the part that training saw least of.
    """

    config: RunConfig
    setup: _Setup
    loader: Batches
    validation: Batches | Dataset | None
    answers: Callable[[Trainer], tuple[Array, Dataset] | None]
    title: Literal["test", "validation"]
    digest: Callable[[Preparation], str]
    sample: Dataset


def _ready(config: RunConfig, tell: Listener, token: CancelToken) -> _Ready | None:
    """Read, divide and prepare, and make the trainer; None: cancelled while folds were measured."""
    base = assembly.base_of(config)
    teacher = assembly.teacher_of(config, base)
    if base is not None:
        if base.opened:
            tell(Warned(f"{config.model.name} takes one sample at a time; the new file takes batches"))
        if base.steps:
            tell(
                Warned(
                    f"{config.model.name} brings a training step of its own (training_info): its loss, "
                    "optimizer and state are not used, and the new file does not have it. In Python, "
                    "onward.train.StoredTraining runs it, Trainer(loss='stored') minimises its loss"
                )
            )
        shapes = [dims_of(value) for value in base.model.graph.inputs]
        config = config.model_copy(update={"data": images_as_taken(config.data, shapes)})
    group = ranks_of(config.parallel)
    streamed = open_stream(config) if group is None else group.from_first(lambda: open_stream(config))
    if streamed is not None:
        return _ready_streamed(config, base, teacher, streamed, tell)
    whole = open_whole(config.data, config.loss.ignore_index, config.seed)
    if whole is not None:
        return _ready_whole(config, base, whole, tell)
    source, named = _read(config, base or teacher)
    if config.data.target is None and (goals := source.dataset.target_columns) is not None:
        target = goals[0] if len(goals) == 1 else goals
        config = config.model_copy(update={"data": config.data.model_copy(update={"target": target})})
    if source.dataset.text_column is not None and config.data.text is None:
        read = config.data.model_copy(update={"text": source.dataset.text_column})
        config = config.model_copy(update={"data": read})
    _refuse_one_class(source.dataset)
    parts = source.split(config.data.split, config.data.split_seed)
    config = tabular_defaults(config, parts) if base is None else config
    _tell_data(config, source, parts, tell)
    raw = parts
    if config.folds is not None:
        _measure_folds(config, base, teacher, source, named, tell, token)
        if token.cancelled:
            return None
    setup = _set_up(config, base, teacher, named, parts, tell)
    parts = setup.parts
    augment = None if config.data.augment is None else parse_augmentation(config.data.augment)
    loader = Loader(parts.train, config.batch_size, config.seed, augment=augment)
    held = parts.test if parts.test is not None else parts.validation
    return _Ready(
        config,
        setup,
        loader,
        parts.validation,
        lambda trainer: None if held is None else _answers(trainer, held),
        "test" if parts.test is not None else "validation",
        lambda graph: digest_of(source.dataset, graph),
        next(part for part in (raw.test, raw.validation, raw.train) if part is not None),
    )


def _kept(config: RunConfig, group: Group | None) -> Path | None:
    """The checkpoint that the configuration names, where rank 0 has it."""
    path = config.checkpoint.path
    if path is None:
        raise ConfigError("to go on by itself a run needs a checkpoint of its own: --checkpoint FILE")
    there = path.exists() if group is None else group.from_first(path.exists)
    return path if there else None


def _ready_streamed(
    config: RunConfig,
    base: assembly.Base | None,
    teacher: assembly.Base | None,
    streamed: Streamed,
    tell: Listener,
) -> _Ready:
    """The same where data are read while the run goes on."""
    group = ranks_of(config.parallel)
    raw = streamed.samples() if group is None else group.from_first(streamed.samples)
    train, validation, test = (0 if part is None else len(part) for part in streamed.parts)
    tell(DataRead(config.data.spec, train, validation, test, _inputs_of(raw.train), streamed.notes))
    config = streamed.weigh_classes(config)
    guide = base or teacher
    known = Preparation() if guide is None else guide.prepared.preparation
    preparation = streamed.prepare(config, known, assembly.untouched_inputs(config, base, raw.train), group)
    setup = _set_up(config, base, teacher, False, raw, tell, preparation)
    loader = streamed.loader(config, 0, preparation, setup.targets)
    assert loader is not None
    if group is not None and (advice := loader.advice(group.size)):
        tell(Warned(advice))
    held = 2 if streamed.parts[2] is not None else 1
    asked = streamed.loader(config, held, preparation, setup.targets)
    return _Ready(
        config,
        setup,
        loader,
        streamed.loader(config, 1, preparation, setup.targets),
        lambda trainer: None if asked is None else _served_answers(trainer, asked, streamed.kind),
        "test" if held == 2 else "validation",
        lambda graph: streamed.digest(),
        next(part for part in (raw.test, raw.validation, raw.train) if part is not None),
    )


def _ready_whole(config: RunConfig, base: assembly.Base | None, whole: Whole, tell: Listener) -> _Ready:
    """The same where batches are given whole."""
    refuse_divided(config)
    if base is None:
        raise ConfigError(f"{config.data.spec}: whole batches train an .onnx file, not a network of the zoo")
    if ranks_of(config.parallel) is not None:
        raise ConfigError("batches that are given whole cannot be divided among ranks: train in one process")
    raw = whole.samples()
    counts = [0 if part is None else len(part) for part in whole.parts]
    tell(
        DataRead(
            config.data.spec,
            counts[0],
            counts[1],
            counts[2],
            _inputs_of(raw.train),
            ("each sample is a whole batch",),
        )
    )
    preparation = base.prepared.preparation
    setup = _set_up(config, base, None, False, raw, tell, preparation)
    train, validation, test = (
        None if part is None else part.mapped(lambda batch: setup.targets.fitted(preparation.apply(batch)))
        for part in whole.parts
    )
    assert train is not None
    held = test or validation

    def answers(trainer: Trainer) -> tuple[Array, Dataset] | None:
        if held is None:
            return None
        name = next(iter(trainer.loss))
        with Session(trainer.model, engine=config.engine, threads=config.threads) as session:
            return answered(lambda inputs: session.run(inputs)[name], held)

    return _Ready(
        config,
        setup,
        train,
        validation,
        answers,
        "test" if test is not None else "validation",
        lambda graph: whole.every.digest(),
        next(part for part in (raw.test, raw.validation, raw.train) if part is not None),
    )


def _finish(ready: _Ready, tell: Listener, token: CancelToken, resume: str | Path | None) -> RunResult:
    """Train, measure and export what is set up; `tell`, `token`, `resume`: see `execute`."""
    config, setup, loader = ready.config, ready.setup, ready.loader
    group = ranks_of(config.parallel)
    first = group is None or group.rank == 0
    trainer, targets = setup.trainer, setup.targets
    bridge = Bridge(tell, token)
    hooks: list[Callback] = [*assembly.callbacks_of(config, first=first), bridge]
    checkpoints = assembly.checkpoints_of(config, bridge.checkpoint_written, first=first)
    if checkpoints is not None:
        bridge.checkpoints = checkpoints
        hooks.append(checkpoints)
    output = assembly.output_of(config) if first else Path()
    tell(
        Started(
            model=config.model.name,
            weights=sum(a.size for a in trainer.weights().values()),
            task=describe(targets.tasks, targets.names, setup.metrics),
            head=setup.head,
            epochs=config.epochs,
            batches=len(loader),
            output=output,
            resumed=None if resume is None else Path(resume),
            half_types=trainer.half_types,
        )
    )
    history = trainer.fit(
        loader,
        validation=ready.validation,
        epochs=config.epochs,
        callbacks=hooks,
        resume=resume,
        progress=False,
    )
    if group is not None:
        tell(RanksTimed(trainer.times))
    if bridge.cancelled:
        finished = Finished("cancelled", token.reason, None, bridge.last_checkpoint)
        tell(finished)
        return RunResult(finished, trainer, history, {}, None)

    def finish() -> tuple[dict[str, float], Report | None]:
        if not first:
            return {}, None
        if config.output is None:  # the folder is the run's alone
            with atomic_write(output.with_name("history.csv")) as file:
                file.write(history.to_csv().encode())
        figures = _measure(config, trainer, ready.answers(trainer), ready.title, tell)
        if config.pruning.sparsity is not None:
            figures["sparsity"] = _sparsity(trainer, tell)
        report = export_run(
            config,
            trainer,
            targets.first,
            setup.preparation,
            ready.sample,
            ready.digest,
            figures,
            output,
            tell,
        )
        return figures, report

    figures, report = finish() if group is None else group.together(finish)
    finished = Finished(
        "stopped" if trainer.stopped else "completed", trainer.stopped, output, bridge.last_checkpoint
    )
    tell(finished)
    return RunResult(finished, trainer, history, figures, report)


@final
@dataclass(frozen=True, eq=False)
class _Setup:
    """All that a training needs, made for one division of the data."""

    trainer: Trainer
    parts: Splits
    targets: assembly.Targets
    preparation: Preparation
    metrics: Sequence[str]
    head: str


def _set_up(
    config: RunConfig,
    base: assembly.Base | None,
    teacher: assembly.Base | None,
    named: bool,
    parts: Splits,
    tell: Listener,
    preparation: Preparation | None = None,
) -> _Setup:
    """Measure the training part, unless that is done, and make a network and a trainer that fit it."""
    if preparation is None:
        untouched = assembly.untouched_inputs(config, base, parts.train)
        guide = base or teacher
        known = None if guide is None else guide.prepared
        group = ranks_of(config.parallel)

        def fit() -> Preparation:
            return fit_preparation(parts.train, config.data, known, untouched)

        preparation = fit() if group is None else group.from_first(fit)
    if preparation.table is not None:
        tell(ColumnsPrepared(preparation.table.report(), preparation.table.width))
    prepared_train = preparation.apply(parts.train)
    model, head = (
        (assembly.build_network(config, prepared_train, preparation), "")
        if base is None
        else assembly.fit_head(config, base, prepared_train, named=named)
    )
    if head and base is not None and model is base.model:
        tell(Warned(head))
        head = ""
    targets = assembly.targets_of(config, model, prepared_train)
    parts = assembly.prepared_parts(parts, preparation, targets)
    lora, trainable = assembly.lora_of(config, model, base)
    metrics = config.metrics if config.metrics is not None else default_metrics(targets.first)
    trainer = Trainer(
        model,
        targets.losses,
        assembly.optimizer_of(config),
        metrics=metrics,
        schedule=assembly.schedule_of(config),
        clip=assembly.clip_of(config),
        accumulate=config.accumulate,
        averaging=assembly.averaging_of(config),
        lora=lora,
        pruning=assembly.pruning_of(config),
        distillation=assembly.distillation_of(config, teacher),
        trainable=trainable,
        freeze=config.model.freeze,
        loss_weights=config.loss_weights or None,
        weighted_mean=config.weighted_mean,
        seed=config.seed,
        engine=config.engine,
        threads=config.threads,
        options=CompileOptions(config.winograd),
        synchronise=config.synchronise,
        exchange=config.exchange,
        shard=config.shard,
        parallel=None if ranks_of(config.parallel) is None else "mpi",
    )
    return _Setup(trainer, parts, targets, preparation, metrics, head)


def _measure_folds(
    config: RunConfig,
    base: assembly.Base | None,
    teacher: assembly.Base | None,
    source: Source,
    named: bool,
    tell: Listener,
    token: CancelToken,
) -> None:
    """Train on all folds but one, measure on that one, and tell; each in turn."""
    assert config.folds is not None
    train, validation, _ = config.data.split
    share = validation / (train + validation)
    divided = folds(source.dataset, config.folds, config.data.split_seed, share)
    for number, parts in enumerate(divided, start=1):
        setup = _set_up(config, base, teacher, named, parts, _silent)
        augment = None if config.data.augment is None else parse_augmentation(config.data.augment)
        loader = Loader(setup.parts.train, config.batch_size, config.seed, augment=augment)
        bridge = Bridge(_silent, token)
        plain = config.model_copy(update={"log": LogTable()})
        setup.trainer.fit(
            loader,
            validation=setup.parts.validation,
            epochs=config.epochs,
            callbacks=[*assembly.callbacks_of(plain), bridge],
            progress=False,
        )
        if token.cancelled:
            return
        held = setup.parts.test
        assert held is not None
        figures = _measure(config, setup.trainer, _answers(setup.trainer, held), "test", _silent)
        plain_figures = {name.removeprefix("test_"): value for name, value in figures.items()}
        tell(FoldMeasured(number, config.folds, plain_figures))


def _sparsity(trainer: Trainer, tell: Listener) -> float:
    """The share of zeros in all weights that are pruned."""
    shares, weights = trainer.sparsity(), trainer.weights()
    sizes = {name: weights[name].size for name in shares}
    zeros = sum(round(share * sizes[name]) for name, share in shares.items())
    tell(Pruned(zeros, sum(sizes.values()), shares))
    return zeros / sum(sizes.values())


def _options(config: RunConfig, resume: str | Path | None) -> dict[str, Any]:
    """What has to be the same for all ranks, by what it is called."""
    found: dict[str, Any] = {"whether the run is resumed": resume is not None}
    for key, value in config.plain().items():
        if key in _OWN:
            continue
        table = value if isinstance(value, dict) else {"": value}
        found |= {f"the option {key}{'.' * bool(name)}{name}": each for name, each in table.items()}
    return found


def _silent(event: Event) -> None:
    """Nobody listens."""


def _refuse_early(config: RunConfig) -> None:
    """What can be refused before the data are read: an output that is there, a time that is none."""
    now()
    assembly.optimizer_of(config)
    assembly.schedule_of(config)
    assembly.averaging_of(config)
    if config.data.augment is not None:
        parse_augmentation(config.data.augment)
    if config.output is not None:
        assembly.output_of(config)


def _read(config: RunConfig, base: assembly.Base | None) -> tuple[Source, bool]:
    """The data, their class numbers as a file's classes say, and whether they name classes."""
    known = None if base is None else base.prepared.preparation
    source = read_data(
        config.data,
        ignore_index=config.loss.ignore_index,
        group=ranks_of(config.parallel),
        **(known_columns(known) if known is not None and is_table(config.data.spec) else {}),
    )
    if known is not None and known.table is None and source.dataset.table:
        source = plain_numbers(source)
    names = None if base is None or config.model.head is not None else base.classes
    data = source.dataset
    if names is not None and data.classes is not None and not set(data.classes) <= set(names):
        names = None  # other classes: the head is replaced
    if names is None and data.classes is None and base is not None and config.model.head is None:
        names = assembly.numbered_classes(base)
    return align_classes(source, names), data.classes is not None


def _tell_data(config: RunConfig, source: Source, parts: Splits, tell: Listener) -> None:
    sizes = [0 if part is None else len(part) for part in (parts.train, parts.validation, parts.test)]
    inputs = _inputs_of(parts.train)
    notes = source.dataset.notes + (() if source.test is None else source.test.notes)
    train, validation, test = sizes
    tell(DataRead(config.data.spec, train, validation, test, inputs, notes))


def _refuse_one_class(dataset: Dataset) -> None:
    """A network has nothing to tell apart where all samples are of one class."""
    if dataset.task != "classification" or dataset.classes is None or len(dataset.classes) != 1:
        return
    if dataset.targets is not None and dataset.targets.ndim == 1:
        raise DataError(
            f"data set {dataset.name!r}: all samples are of one class, {dataset.classes[0]!r}; at least two "
            "are needed"
        )


def _inputs_of(dataset: Dataset) -> dict[str, str]:
    if dataset.table:
        return {columns_text(len(dataset.columns or ())): ""}
    if dataset.whole:
        return {name: f"{a.dtype} [{', '.join('?' * a.ndim)}]" for name, a in dataset.inputs.items()}
    return {
        name: "text" if a.dtype.kind == "O" else f"{a.dtype} {['N', *a.shape[1:]]}".replace("'N'", "N")
        for name, a in dataset.inputs.items()
    }


def _answers(trainer: Trainer, held: Dataset) -> tuple[Array, Dataset]:
    """The output that is measured, in the types that are written, and what it is measured against."""
    return trainer.predict(held, own_types=True)[next(iter(trainer.loss))], held


def _served_answers(trainer: Trainer, served: StreamLoader, kind: Kind) -> tuple[Array, Dataset]:
    """The same of samples that are read batch by batch: inputs are not kept."""
    outputs, targets = [], []
    with contextlib.closing(served.epoch(0)) as batches:
        for batch in batches:
            assert batch.targets is not None
            samples = Dataset(batch.inputs, name=served.rows.name)
            found = trainer.predict(samples, own_types=True)
            outputs.append(found[next(iter(trainer.loss))])
            targets.append(batch.targets)
    places = {"row": np.arange(sum(map(len, targets)))}
    sample = served.sample
    answered = Dataset(
        places,
        np.concatenate(targets),
        classes=sample.classes,
        name=sample.name,
        task=sample.task,
        ignore_index=kind.ignore_index,
    )
    return np.concatenate(outputs), answered


def _measure(
    config: RunConfig,
    trainer: Trainer,
    answers: tuple[Array, Dataset] | None,
    title: Literal["test", "validation"],
    tell: Listener,
) -> dict[str, float]:
    if answers is None:
        return {}
    outputs, held = answers
    threshold = 0.5 if final_activation(trainer.model) == "Sigmoid" else 0.0
    found = measure(outputs, held, extra=config.metrics or (), threshold=threshold)
    tell(Measured(title, found))
    return {f"{title}_{name}": value for name, value in found.figures.items()}

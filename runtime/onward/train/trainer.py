"""Training in Keras's shape: fit, evaluate, predict."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.autodiff import Clip, GradientTransform, TrainingStep, training_step, with_loss
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.data import Batch, Dataset, Loader, as_dtype
from onward.engine import Session, StepSession
from onward.engine.engines import EngineName
from onward.engine.session import check_inputs
from onward.errors import ConfigError, DataError, InputError
from onward.graph import Array, TensorSpec, dims_of
from onward.passes.replace_head import replace_head
from onward.train.callbacks import Callback, Checkpoints, StopOnNaN
from onward.train.history import History
from onward.train.losses import CrossEntropy, Loss
from onward.train.means import MeanLoss
from onward.train.metrics import Metric
from onward.train.optimizers import Optimizer, optimizer_named
from onward.train.preparation import (
    check_groups,
    choose_parameters,
    order_losses,
    prepare_model,
)
from onward.train.progress import ProgressBar
from onward.train.run import Run
from onward.train.schedules import Constant, Schedule
from onward.train.task import advice, metric_for

__all__ = ["Trainer"]


@final
class Trainer:
    """Trains an ONNX model.

    Args:
        model: a model, something with a `model` attribute (a network of `onward.nn`), or an .onnx file.
            Models of another opset are converted to the one that gradients are written in.
        loss: a loss, its name, or one for each of several outputs. The data set's targets are those of the
            first of these in the model's order; targets of the others are inputs named `<output>.target`.
        optimizer: an optimizer or its name.
        metrics: names or metrics, computed on the output that the data set's targets belong to. A name means
            what fits the loss: `accuracy` with binary cross-entropy over several columns is of labels that
            hold or not, with the mean squared error of one-hot rows.
        schedule: of the learning rate.
        clip: gradient clipping, after all other transforms of gradients.
        gradient_transforms: functions that change the gradients before the update: see `GradientTransform`.
        accumulate: update once in this many batches, from the mean over all their samples that count. An
            epoch's last update takes those that are left.
        trainable: globs over initializer names; by default every weight that the model's operators use.
        freeze: globs over those names that stay as they are.
        loss_weights: weights of several losses in their sum.
        head: outputs of a new last layer for the first loss's output, see `onward.passes.replace_head`; None:
            the model's own.
        seed: of a new head, of dropout and, where `fit` makes the loader, of the order of samples.
        engine: which engine runs the model and its training step.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.

    Raises:
        ConfigError: an option that does not fit the model.
        UnsupportedError: an operator without gradient between the loss and a trained parameter.
    """

    def __init__(
        self,
        model: ir.Model | str | Path | Any,
        loss: Loss | str | Mapping[str, Loss | str] = "cross_entropy",
        optimizer: Optimizer | str = "sgd",
        *,
        metrics: Sequence[Metric | str] = (),
        schedule: Schedule | None = None,
        clip: Clip | None = None,
        gradient_transforms: Sequence[GradientTransform] = (),
        accumulate: int = 1,
        trainable: Sequence[str] | None = None,
        freeze: Sequence[str] = (),
        loss_weights: Mapping[str, float] | None = None,
        head: int | None = None,
        seed: int = 0,
        engine: EngineName = "auto",
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        if accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, got {accumulate}")
        self._model = prepare_model(model)
        graph = self._model.graph
        outputs = [v.name or "" for v in graph.outputs]
        losses = order_losses(loss if isinstance(loss, Mapping) else {outputs[0]: loss}, outputs)
        if unknown := [name for name in loss_weights or {} if name not in losses]:
            raise ConfigError(
                f"there is a weight for {unknown[0]!r}, but the losses are for {', '.join(losses)}"
            )
        if head is not None:
            self._model = replace_head(self._model, head, output=next(iter(losses)), seed=seed)
            graph = self._model.graph
        self.loss = losses
        self.optimizer = optimizer_named(optimizer) if isinstance(optimizer, str) else optimizer
        self.schedule = schedule if schedule is not None else Constant()
        first = next(iter(losses), "")
        measured = next((v for v in graph.outputs if v.name == first), graph.outputs[0])
        self.metrics = tuple(
            metric_for(m, losses[first], measured) if isinstance(m, str) else m for m in metrics
        )
        self.seed = seed
        self._accumulate = accumulate
        self.trainable = choose_parameters(self._model, losses, trainable, freeze)
        check_groups(self.optimizer, self.trainable)
        self.step: TrainingStep = training_step(
            self._model,
            losses,
            self.optimizer,
            self.trainable,
            loss_weights=loss_weights,
            gradient_transforms=(*gradient_transforms, *([] if clip is None else [clip])),
            accumulate=accumulate > 1,
        )
        self._session = StepSession(
            self.step.model, self.step.bindings, engine=engine, threads=threads, options=options
        )
        self._losses = (losses, loss_weights)
        self._inference = Session(self._model, engine=engine, threads=threads, options=options)
        self._engine: EngineName = engine
        self._threads = threads
        self._options = options
        self._evaluation: tuple[Session, Mapping[str, str], Mapping[str, str]] | None = None
        self.history = History()
        self.stopped = ""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._inference.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._inference.outputs

    @property
    def model(self) -> ir.Model:
        """The inference model with the current weights and running statistics: a copy."""
        model = self._model.clone()
        for name, array in self.weights().items():
            model.graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)
        return model

    def weights(self) -> dict[str, Array]:
        """Current parameters and running statistics by name."""
        state = self._session.state
        return {name: state[name] for name in (*self.step.parameters, *self.step.statistics)}

    @property
    def state(self) -> Mapping[str, Array]:
        """Parameters, optimizer state and running statistics by name, as they are now; read-only."""
        return self._session.state

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Put back what `state` gave, here or in another trainer of the same step.

        Raises:
            InputError: a name is missing or unknown, or an array does not fit.
        """
        self._session.load_state(state)

    def _fresh_slots(self) -> dict[str, Array]:
        initializers = self.step.model.graph.initializers
        tensors = {name: initializers[name].const_value for name in self.step.slots}
        return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}

    def fit(
        self,
        data: Loader | Dataset | tuple[Array, Array],
        *,
        validation: Loader | Dataset | tuple[Array, Array] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        callbacks: Sequence[Callback] = (),
        resume: str | Path | None = None,
        progress: bool | None = None,
        keep_optimizer_state: bool = False,
    ) -> History:
        """Train.

        Each call is a run of its own: it starts from the current weights and statistics, and, unless told
        otherwise, with fresh optimizer state, as a new trainer of `model` would.

        Args:
            data: a loader, a data set, or arrays (inputs [N, ...], targets [N, ...]).
            validation: evaluated after each epoch.
            epochs: epochs of the whole run, those before a resumption included.
            batch_size: samples a batch where a loader has to be made.
            callbacks: called in order; checkpoints last.
            resume: a checkpoint to go on from; the run then equals one that never stopped.
            progress: show a progress bar; None: on a terminal.
            keep_optimizer_state: go on with the moments that an earlier call left.

        Raises:
            ConfigError: the data do not fit the model, or options contradict each other.
            DataError: a label out of range.
            TrainingError: the loss or a weight is not finite (by StopOnNaN, which is always there): the
                weights are then those from before the step that made it so; or the checkpoint does not belong
                to this run.
        """
        if epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {epochs}")
        loader = self._loader(data, batch_size, shuffle=True)
        held_out = None if validation is None else self._loader(validation, batch_size, shuffle=False)
        feeds = self._feeder(loader.dataset)
        self._check_some_count(loader.dataset)
        hooks = [StopOnNaN(), *(c for c in callbacks if not isinstance(c, StopOnNaN))]
        hooks.sort(key=lambda c: isinstance(c, Checkpoints))
        run = Run(
            loader=loader,
            validation=held_out,
            epochs=epochs,
            feed=feeds,
            session=self._session,
            layout=self.step,
            metrics=self.metrics,
            callbacks=hooks,
            schedule=self.schedule,
            base_rate=self.optimizer.learning_rate,
            accumulate=self._accumulate,
            seed=self.seed,
            identity=self._identity(loader, epochs),
        )
        for metric in self.metrics:
            metric.reset()
        if resume is not None:
            run.resume(resume)
        elif not keep_optimizer_state:
            self._session.load_state({**self._session.state, **self._fresh_slots()})
        self.history = run.history
        run.begin()
        for hook in hooks:
            hook.on_train_begin(run)
        with ProgressBar(progress) as bar:
            while run.epoch <= epochs and not run.stopped:
                bar.epoch(run.epoch, epochs, len(loader), run.batch)
                for batch in loader.epoch(run.epoch - 1, run.batch):
                    run.advance(batch)
                    bar.step(run.figures() if bar.shown else run.last, len(batch))
                    for hook in hooks:
                        hook.on_step_end(run)
                    if run.halted:
                        break
                if run.halted:
                    break
                run.check_weights()
                held = {} if held_out is None else self._scalars(held_out)
                run.close_epoch({f"val_{name}": value for name, value in held.items()})
                bar.close_epoch(run.history.rows[-1])
        for hook in hooks:
            hook.on_train_end(run)
        self.stopped = run.stopped
        return run.history

    def evaluate(
        self, data: Loader | Dataset | tuple[Array, Array], *, batch_size: int = 256
    ) -> dict[str, float | Array]:
        """Loss and metrics over data, in inference form.

        Returns:
            `loss`, then each metric by its name: a float, or an array for figures per class. All are over the
            samples that count, at any batch size; the loss is NaN where none does.
        """
        loader = self._loader(data, batch_size, shuffle=False)
        if self._evaluation is None:
            model, totals, targets = with_loss(self._model, *self._losses)
            session = Session(model, engine=self._engine, threads=self._threads, options=self._options)
            self._evaluation = session, totals, targets
        session, totals, targets = self._evaluation
        session.load_weights(self.weights(), copy=False)
        feeds = self._feeder(loader.dataset, targets)
        metrics = [copy.deepcopy(m) for m in self.metrics]
        for metric in metrics:
            metric.reset()
        mean = MeanLoss(totals)
        output = next(iter(self.loss))
        for batch in loader.epoch(0):
            results = session.run(feeds(batch), [*totals, *totals.values(), output])
            mean.add(results)
            if batch.targets is not None:
                for metric in metrics:
                    metric.update(results[output], batch.targets)
        return {"loss": mean.value(), **{m.name: m.result() for m in metrics}}

    def predict(
        self, inputs: Dataset | Mapping[str, Array] | Array, *, batch_size: int = 256
    ) -> dict[str, Array]:
        """Outputs by name for inputs [N, ...], computed in batches.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape.
        """
        if isinstance(inputs, Dataset):
            arrays: Mapping[str, Array] = _named(inputs, self.inputs)
        elif isinstance(inputs, Mapping):
            arrays = inputs
        else:
            arrays = {self.inputs[0].name: _array(self.inputs[0].name, inputs)}
        if not arrays or any(np.ndim(a) == 0 for a in arrays.values()):
            check_inputs(self.inputs, arrays)
        self._inference.load_weights(self.weights(), copy=False)
        count = len(next(iter(arrays.values())))
        parts = [
            self._inference.run({name: a[i : i + batch_size] for name, a in arrays.items()})
            for i in range(0, max(count, 1), batch_size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _scalars(self, loader: Loader) -> dict[str, float]:
        return {name: value for name, value in self.evaluate(loader).items() if isinstance(value, float)}

    def _loader(self, data: Loader | Dataset | tuple[Array, Array], size: int, *, shuffle: bool) -> Loader:
        if isinstance(data, Loader):
            return data
        if not isinstance(data, Dataset):
            inputs, targets = data
            loss = next(iter(self.loss.values()))
            classification = isinstance(loss, CrossEntropy)
            data = Dataset(
                {self.inputs[0].name: np.asarray(inputs)},
                np.asarray(targets),
                task="classification" if classification else "regression",
                ignore_index=loss.ignore_index if isinstance(loss, CrossEntropy) else None,
            )
        return Loader(data, size, self.seed, shuffle=shuffle)

    def _feeder(
        self, dataset: Dataset, targets: Mapping[str, str] | None = None
    ) -> Callable[[Batch], dict[str, Array]]:
        """A function from batches to the arrays that the step takes."""
        names = {
            spec.name: source
            for spec, source in zip(self.inputs, _sources(dataset, self.inputs), strict=True)
        }
        slots = dict(self.step.targets if targets is None else targets)
        if dataset.targets is None:
            raise ConfigError(f"data set {dataset.name!r} has no targets")
        dtypes = {spec.name: spec.dtype for spec in self._session.inputs}
        first, *others = slots
        if missing := [f"{name}.target" for name in others if f"{name}.target" not in dataset.inputs]:
            raise ConfigError(
                f"data set {dataset.name!r} has no input {missing[0]!r}, which the loss of that output needs"
            )
        self._check_labels(dataset, first)
        self._check_shape(dataset, first)
        kinds = {output: dtypes[target] for output, target in self.step.targets.items()}

        def feed(batch: Batch) -> dict[str, Array]:
            arrays = {
                name: as_dtype(batch.inputs[source], dtypes[name], f"input {name!r}")
                for name, source in names.items()
            }
            if batch.targets is not None:
                arrays[slots[first]] = as_dtype(batch.targets, kinds[first], "the targets")
            for output in others:
                name = f"{output}.target"
                arrays[slots[output]] = as_dtype(batch.inputs[name], kinds[output], f"input {name!r}")
            return arrays

        return feed

    def _check_labels(self, dataset: Dataset, output: str) -> None:
        loss = self.loss[output]
        value = next(v for v in self._model.graph.outputs if v.name == output)
        dims, targets = dims_of(value), dataset.targets
        if not isinstance(loss, CrossEntropy) or dims is None or targets is None:
            return
        if dataset.task != "classification":
            raise ConfigError(
                f"cross-entropy needs class labels, but data set {dataset.name!r} is for regression; "
                "choose a loss such as mse"
            )
        if dataset.ignore_index is not None and dataset.ignore_index != loss.ignore_index:
            raise ConfigError(
                f"data set {dataset.name!r} says that label {dataset.ignore_index} does not count, the loss "
                f"has ignore_index={loss.ignore_index}; give CrossEntropy ignore_index={dataset.ignore_index}"
            )
        classes = dims[loss.axis]
        if not isinstance(classes, int):
            return
        if dataset.classes is not None and len(dataset.classes) != classes:
            raise ConfigError(
                f"data set {dataset.name!r} has {len(dataset.classes)} classes, output {output!r} has "
                f"{classes}; Trainer(..., head={len(dataset.classes)}) puts a new last layer on the model"
            )
        bad = (targets < 0) | (targets >= classes)
        if loss.ignore_index is not None:
            bad &= targets != loss.ignore_index
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise DataError(
                f"data set {dataset.name!r}, row {row}: label {targets[bad].ravel()[0]} is out of range; "
                f"output {output!r} has {classes} classes"
            )

    def _check_some_count(self, dataset: Dataset) -> None:
        loss = next(iter(self.loss.values()))
        ignored = loss.ignore_index if isinstance(loss, CrossEntropy) else None
        if ignored is None or dataset.targets is None or len(self.loss) > 1:
            return
        if bool((dataset.targets == ignored).all()):
            raise DataError(
                f"data set {dataset.name!r}: every label is {ignored}, which the loss ignores; there is "
                "nothing to train on"
            )

    def _check_shape(self, dataset: Dataset, output: str) -> None:
        spec = next(spec for spec in self._session.inputs if spec.name == self.step.targets[output])
        targets = dataset.targets
        if targets is None or spec.admits((len(targets), *targets.shape[1:])):
            return
        value = next(v for v in self._model.graph.outputs if v.name == output)
        hint = advice(dataset, value, self.loss[output])
        raise ConfigError(
            f"{type(self.loss[output]).__name__} of output {output!r} needs targets {spec}, data set "
            f"{dataset.name!r} has targets of shape {['N', *targets.shape[1:]]}".replace("'N'", "N")
            + hint
        )

    def _identity(self, loader: Loader, epochs: int) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run."""
        structure = hashlib.sha256()
        for node in self.step.model.graph:
            structure.update(
                f"{node.domain}:{node.op_type}{[v.name if v else None for v in node.inputs]}".encode()
            )
            structure.update(repr(sorted((k, str(a.value)) for k, a in node.attributes.items())).encode())
        for name, value in self.step.model.graph.initializers.items():
            if name not in self.step.bindings and value.const_value is not None:
                structure.update(f"{name}:".encode() + value.const_value.tobytes())
        return {
            "training step": structure.hexdigest(),
            "data": loader.dataset.digest(),
            "batch size": loader.batch_size,
            "order seed": loader.seed,
            "seed": self.seed,
            "optimizer": repr(self.optimizer),
            "schedule": repr(self.schedule.over(epochs)),
            "number of batches to an update": self._accumulate,
            "number of batches in an epoch": len(loader),
            "metrics": [m.name for m in self.metrics],
        }


def _array(name: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"input {name!r}: not an array: {error}") from None


def _sources(dataset: Dataset, specs: Sequence[TensorSpec]) -> list[str]:
    """For each model input the data set's input that feeds it: by name, or the only one."""
    have = [name for name in dataset.inputs if not name.endswith(".target")]
    if all(spec.name in have for spec in specs):
        return [spec.name for spec in specs]
    if len(specs) == 1 and len(have) == 1:
        return have
    raise ConfigError(
        f"the model takes {', '.join(s.name for s in specs)}, data set {dataset.name!r} has "
        f"{', '.join(have)}; give them equal names"
    )


def _named(dataset: Dataset, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    sources = _sources(dataset, specs)
    return {
        spec.name: as_dtype(dataset.inputs[source], spec.dtype, f"input {spec.name!r}")
        for spec, source in zip(specs, sources, strict=True)
    }

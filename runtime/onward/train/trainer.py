"""Training in Keras's shape: fit, evaluate, predict."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import onnx_ir as ir

from onward.autodiff import (
    OPSET,
    Clip,
    Collective,
    GradientTransform,
    Pieces,
    Ranks,
    TrainingStep,
    training_step,
    with_loss,
)
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.data import Batch, Batches, Dataset
from onward.engine import Session, StepSession
from onward.engine.engines import EngineName
from onward.engine.session import check_inputs
from onward.errors import ConfigError
from onward.graph import Array, Builder, TensorSpec
from onward.parallel import Communicator, Group, Times, ranks_of, threads_each
from onward.passes.expand import expand_onward
from onward.passes.fix_shapes import fix_inputs, fix_shapes
from onward.passes.float32 import half_types, in_float32
from onward.passes.lora import LoRA, merge_lora
from onward.passes.replace_head import find_head, new_head
from onward.passes.samples_first import axis_of_all, samples_first
from onward.train.agreement import check_ranks, rounding_alike, structure_of
from onward.train.averaging import Averaging, BatchStatistics, averaging_named, end_epoch
from onward.train.callbacks import Callback, Checkpoints, StopOnNaN
from onward.train.checkpoint import averaged
from onward.train.distillation import Distillation, distilled, with_teacher
from onward.train.feeding import (
    Inputs,
    Samples,
    array_of,
    check_dataset,
    check_labels,
    check_some_count,
    feeder,
    named_inputs,
)
from onward.train.history import History
from onward.train.loading import Loading
from onward.train.losses import Loss
from onward.train.means import MeanLoss
from onward.train.metrics import FunctionMetric, Metric
from onward.train.optimizers import Optimizer, optimizer_named
from onward.train.precision import in_own_types, in_types_of
from onward.train.preparation import (
    LossLike,
    adapted,
    check_groups,
    choose_parameters,
    order_losses,
    prepare_model,
    read_model,
)
from onward.train.progress import ProgressBar
from onward.train.pruning import Pruning, sparsity_of
from onward.train.rate_finder import RateFinding, Sweep, sweep
from onward.train.run import Run
from onward.train.schedules import Constant, Schedule
from onward.train.stored_loss import StoredLoss, stored_steps
from onward.train.task import metric_for
from onward.train.training_info import with_training_info

__all__ = ["Trainer"]


@final
class Trainer:
    """Trains an ONNX model.

    Args:
        model: a model, something with a `model` attribute (a network of `onward.nn`), or an .onnx file.
            Models of another opset are converted to the one that gradients are written in. One of float16 or
            bfloat16 is trained in float32, weights, inputs and outputs, and `model` has its own types again.
        loss: a loss, its name, a function (see `FunctionLoss`), or one for each of several outputs. The data
            set's targets are those of the first of these in the model's order; targets of the others are
            inputs named `<output>.target`. "stored": the loss of the training step that the file has, see
            `StoredLoss`; nothing else of that step is used, which `StoredTraining` runs.
        optimizer: an optimizer or its name.
        metrics: names, metrics or functions (see `FunctionMetric`), computed on the output that the data
            set's targets belong to. A name means what fits the loss: `accuracy` with binary cross-entropy
            over several columns is of labels that hold or not, with the mean squared error of one-hot rows.
        schedule: of the learning rate.
        clip: gradient clipping, after all other transforms of gradients.
        gradient_transforms: functions that change the gradients before the update: see `GradientTransform`.
        accumulate: update once in this many batches, from the mean over all their samples that count. An
            epoch's last update takes those that are left.
        averaging: average weights over the run: `EMA`, `SWA`, or "ema" or "swa". The average, once there is
            one, is what `weights`, `model`, `evaluate`, `predict` and validation go by, and what the next
            `fit` begins with.
        lora: train low-rank adapters beside these weights, and nothing else but a new head and what
            `trainable` matches. `model` has them merged into the weights, `adapted` has them beside.
        pruning: make weights 0 by a schedule, which then stay 0.
        distillation: learn from a teacher's scores too. `evaluate`, and so validation, is by labels alone.
        trainable: globs over initializer names; by default every weight that the model's operators use.
        freeze: globs over those names that stay as they are.
        loss_weights: weights of several losses in their sum.
        head: outputs of a new last layer for the first loss's output, see `onward.passes.new_head`; None:
            the model's own.
        weighted_mean: what the loss of samples that weigh unlike is divided by: the sum of their weights, or,
            as Keras does, the number of samples.
        shapes: shapes of inputs that the file leaves open, where gradients need them; by input name, None for
            what stays open.
        constants: inputs that always have the same contents, such as a sampling rate: they are inputs no
            longer, and branches that they choose are taken once and for all.
        sample_axis: where samples lie, in all inputs and outputs of rank 2 and above or by the name of each;
            data, targets and what is predicted have them along axis 0 all the same. `model` keeps its layout.
        seed: of a new head, of dropout and, where `fit` makes the loader, of the order of samples.
        engine: which engine runs the model and its training step.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.
        parallel: "mpi", where `mpirun` or the like has started this program several times, or a communicator
            between threads or processes that each make this trainer: they train one model, each on its share
            of every batch. What is computed does not depend on their number, but for rounding and for batch
            normalization, which is by each share. All ranks have to make the same calls; `predict` alone is
            each rank's own.
        synchronise: with `parallel`, batch normalization by the whole batch, at the price of two exchanges
            for each in either direction that nothing hides.
        bucket_bytes: gradients are exchanged in pieces of this size, during the backward pass.
        exchange: with `parallel`, the type in which gradients of float32 travel. bfloat16 halves the traffic;
            sums are of float32, but each gradient is rounded to 8 bits where it leaves a rank, and each sum
            once more.
        shard: with `parallel`, each rank has the optimizer's state of its part of the parameters alone,
            updates that part, and gathers the others': for optimizers whose update is element by element, as
            all of Onward's are, and no transforms of gradients but clipping.

    Raises:
        ConfigError: an option that does not fit the model, or ranks that disagree.
        UnsupportedError: an operator without gradient between the loss and a trained parameter.
    """

    def __init__(
        self,
        model: ir.Model | str | Path | Any,
        loss: LossLike | Mapping[str, LossLike] = "cross_entropy",
        optimizer: Optimizer | str = "sgd",
        *,
        metrics: Sequence[Metric | str | Callable[[Array, Array], Any]] = (),
        schedule: Schedule | None = None,
        clip: Clip | None = None,
        gradient_transforms: Sequence[GradientTransform] = (),
        accumulate: int = 1,
        averaging: Averaging | str | None = None,
        lora: LoRA | None = None,
        pruning: Pruning | None = None,
        distillation: Distillation | None = None,
        trainable: Sequence[str] | None = None,
        freeze: Sequence[str] = (),
        loss_weights: Mapping[str, float] | None = None,
        head: int | None = None,
        shapes: Mapping[str, Sequence[int | str | None]] | None = None,
        constants: Mapping[str, Array] | None = None,
        weighted_mean: Literal["weights", "samples"] = "weights",
        sample_axis: int | Mapping[str, int] = 0,
        seed: int = 0,
        engine: EngineName = "auto",
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
        parallel: Literal["mpi"] | Communicator | None = None,
        synchronise: bool = False,
        bucket_bytes: int = 4 << 20,
        exchange: Literal["float32", "bfloat16"] = "float32",
        shard: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        if weighted_mean not in ("weights", "samples"):
            raise ConfigError(f"weighted_mean must be weights or samples, got {weighted_mean!r}")
        if exchange not in ("float32", "bfloat16"):
            raise ConfigError(f"exchange must be float32 or bfloat16, got {exchange!r}")
        if accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, got {accumulate}")
        self._group, self._bucket_bytes = _group_of(parallel), bucket_bytes
        self._synchronise, self._exchange, self._shard = synchronise, exchange, shard
        self.times: tuple[Times, ...] = ()
        if self._group is not None and threads is None:
            threads = threads_each()
        source = read_model(model)
        if loss == "stored":
            stored = StoredLoss(source)
            loss = {stored.of: stored}
        elif stored_steps(source):
            warnings.warn(
                "the file brings a training step of its own (training_info), which a Trainer does not use: "
                "StoredTraining runs it, loss='stored' minimises its loss",
                stacklevel=2,
            )
        own = prepare_model(source)
        if constants is not None:
            own = fix_inputs(own, constants)
        if shapes is not None:
            own = fix_shapes(own, shapes)
        graph = own.graph
        outputs = [v.name or "" for v in graph.outputs]
        losses = order_losses(loss if isinstance(loss, Mapping) else {outputs[0]: loss}, outputs)
        if unknown := [name for name in loss_weights or {} if name not in losses]:
            raise ConfigError(
                f"there is a weight for {unknown[0]!r}, but the losses are for {', '.join(losses)}"
            )
        if head is not None:
            own = new_head(own, head, output=next(iter(losses)), seed=seed)[0]
        if lora is not None and pruning is not None:
            raise ConfigError("adapters and pruning exclude each other: merged weights would not be sparse")
        self.lora, self.pruning = lora, pruning
        if lora is None:
            self.trainable = choose_parameters(own, losses, trainable, freeze)
        else:
            whole = [] if trainable is None else choose_parameters(own, losses, trainable, freeze)
            if head is not None:
                new = find_head(own, next(iter(losses)))
                whole += [n for n in (new.weight, new.bias) if n is not None and n not in whole]
            own, self.trainable = adapted(own, lora, whole, seed)
        self.half_types: tuple[str, ...] = tuple(t.name.lower() for t in half_types(own))
        """The types of 16 bits that `model` has: "float16", "bfloat16"."""
        self._axes = _sample_axes(own, sample_axis)
        self._own, self._model = own, samples_first(in_float32(own), self._axes)
        graph = self._model.graph
        self.loss = losses
        self.optimizer = optimizer_named(optimizer) if isinstance(optimizer, str) else optimizer
        self.schedule = schedule if schedule is not None else Constant()
        first = next(iter(losses), "")
        measured = next((v for v in graph.outputs if v.name == first), graph.outputs[0])
        self.metrics = tuple(
            metric_for(m, losses[first], measured)
            if isinstance(m, str)
            else m
            if isinstance(m, Metric)
            else FunctionMetric(m)
            for m in metrics
        )
        self.seed = seed
        self._accumulate = accumulate
        self.averaging = averaging_named(averaging) if isinstance(averaging, str) else averaging
        self._over_samples = weighted_mean == "samples"
        self._masked = () if pruning is None else pruning.parameters(own, self.trainable)
        check_groups(self.optimizer, self.trainable)
        self._transforms = (*gradient_transforms, *([] if clip is None else [clip]))
        self._losses = (losses, loss_weights)
        self._taught: tuple[ir.Model, Mapping[str, Loss]] = (self._model, losses)
        if distillation is not None:
            student = next(iter(losses))
            with_both, scores = with_teacher(self._model, distillation, student)
            self._taught = with_both, {**losses, student: distilled(losses[student], distillation, scores)}
        self._engine: EngineName = engine
        self._threads = threads
        self._options = options
        self.step: TrainingStep = self._new_step(None)
        self._session = self._step_session()
        self._inference = Session(self._model, engine=engine, threads=threads, options=options)
        self._loading = Loading(self.inputs, losses, seed, self._group)
        self._evaluations: dict[bool, tuple[Session, Mapping[str, str], Mapping[str, str]]] = {}
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
        """The inference model with the current weights and running statistics, adapters merged: a copy.

        It is of the model's own types.
        """
        return self.adapted if self.lora is None else merge_lora(self.adapted)

    @property
    def adapted(self) -> ir.Model:
        """The same with adapters beside the weights that they change, where there are any."""
        model = self._own.clone()
        for name, array in in_own_types(self.weights(), self._own).items():
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        return model

    def sparsity(self) -> dict[str, float]:
        """The share of zeros in each weight that is pruned, by name."""
        weights = self.weights()
        return sparsity_of({name: weights[name] for name in self._masked})

    def training_model(self, *, start: bool = True) -> ir.Model:
        """The training step in standard operators: a copy.

        Any ONNX runtime that runs it and feeds the outputs of `step.bindings` back trains; the names are in
        the metadata `onward.training_step`. See examples/in_onnxruntime.

        Args:
            start: whether the model carries the current state, as initializers that are inputs too. Runtimes
                in which such inputs cannot be fed, as onnxruntime's for JavaScript, need it without, and what
                `state_model` gives for their first step.
        """
        model = expand_onward(self.step.model)
        for name, array in self.state.items():
            if start:
                model.graph.initializers[name].const_value = ir.tensor(np.array(array), name=name)
            else:
                model.graph.initializers.pop(name).const_value = None
        return model

    def state_model(self) -> ir.Model:
        """A model without inputs that gives the current state, by the names of the step's inputs."""
        graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="state")
        g = Builder(graph)
        for name, array in self.state.items():
            held = g.initializer(f"{name}.held", np.array(array))
            g.output(g.Identity(held), name)
        return ir.Model(graph, ir_version=10)

    def with_training_info(self) -> ir.Model:
        """`model`, in inference form, with the training step in the file's `training_info`.

        Raises:
            UnsupportedError: the step trains other numbers than the file has, of 16 bits or quantised.
        """
        return with_training_info(self.model, self.step, self.state)

    def weights(self) -> dict[str, Array]:
        """Current parameters and running statistics by name: their averages, where there are any."""
        step = self.step
        state = averaged(self._session.state, step.averages, step.averaged, step.masks)
        return {name: state[name] for name in (*step.parameters, *step.statistics)}

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

    def _new_step(self, sample_weight: str | None, *, alone: bool = False) -> TrainingStep:
        (model, losses), loss_weights = self._taught, self._losses[1]
        ranks = None
        if (group := self._group) is not None and not alone:
            gradients: Collective | Pieces = Collective(group.gradients, self._bucket_bytes)
            if self._shard or self._exchange != "float32":
                gradients = Pieces(*group.pieces, group.rank, group.size, self._exchange, self._bucket_bytes)
            ranks = Ranks(group.function, gradients, self._shard, self._synchronise)
        return training_step(
            model,
            losses,
            self.optimizer,
            self.trainable,
            loss_weights=loss_weights,
            gradient_transforms=self._transforms,
            accumulate=self._accumulate > 1,
            sample_weight=sample_weight,
            over_samples=self._over_samples,
            ranks=ranks,
            average=self.averaging,
            masked=self._masked,
        )

    def _step_session(self) -> StepSession:
        return StepSession(
            self.step.model,
            self.step.bindings,
            engine=self._engine,
            threads=self._threads,
            options=self._options,
        )

    def _weigh_samples(self, weighted: bool) -> None:
        """Change to the step that takes sample weights, or to the one that does not; the state goes along."""
        if weighted == (self.step.sample_weight is not None):
            return
        before = self._session.state
        self.step = self._new_step(self._weights_name() if weighted else None)
        fresh = self._step_session()
        fresh.load_state({name: before.get(name, array) for name, array in fresh.state.items()})
        self._session = fresh

    def _weights_name(self) -> str:
        """What the input for sample weights is called: a name that the model has no use for."""
        graph = self._model.graph
        taken = {v.name for v in graph.inputs} | set(graph.initializers)
        return next(
            name
            for name in ("sample_weight", *map("sample_weight.{}".format, range(len(taken) + 1)))
            if name not in taken
        )

    def _fresh_slots(self) -> dict[str, Array]:
        initializers = self.step.model.graph.initializers
        tensors = {name: initializers[name].const_value for name in self.step.slots}
        return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}

    def fit(
        self,
        data: Samples | Inputs,
        targets: Array | None = None,
        *,
        validation: Samples | None = None,
        validation_data: Samples | None = None,
        validation_split: float = 0.0,
        sample_weight: Array | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        prefetch: int = 2,
        workers: int = 0,
        callbacks: Sequence[Callback] = (),
        resume: str | Path | None = None,
        progress: bool | None = None,
        keep_optimizer_state: bool = False,
    ) -> History:
        """Train.

        Each call is a run of its own: it starts from the current weights and statistics, and, unless told
        otherwise, with fresh optimizer state, as a new trainer of `model` would.

        Args:
            data: a loader, a data set, a pair (inputs, targets), or inputs alone, with `targets`: an array
                [N, ...], or a mapping of one for each of the model's inputs. Data that are not in memory:
                `numpy.memmap` arrays, rows (`onward.data.open_npy`, `open_parquet`), a map-style data set
                (`len` and items (input, target), as torch's and Hugging Face's), a generator, a list or
                iterable of batches (inputs, targets) or (inputs, targets, weights), or a function that makes
                a fresh one for each epoch: see `onward.data.StreamLoader` and `IterableBatches`.
            targets: [N, ...].
            validation: evaluated after each epoch; a data set, a loader, or a tuple (inputs, targets) or
                (inputs, targets, sample weights).
            validation_data: the same, as Keras calls it.
            validation_split: hold back this share of the samples, the last ones, and evaluate on them after
                each epoch. Samples in the order of their classes, or of time, are shuffled first by whoever
                wants that.
            sample_weight: [N], at least 0: how much each sample counts in the loss and its gradient, whose
                mean is Σ w_i loss_i / Σ w_i. A weight of 2 is the sample twice. Metrics count samples alike.
            epochs: epochs of the whole run, those before a resumption included.
            batch_size: samples a batch where a loader has to be made.
            steps_per_epoch: batches an epoch, of a generator or an iterable of batches.
            prefetch: batches that a thread makes before they are needed, of data that are not in memory.
            workers: processes that read rows or a map-style data set, in place of that thread alone.
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
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if validation is not None and validation_data is not None:
            raise ConfigError("validation and validation_data are two names of one thing: give one of them")
        held = validation if validation_data is None else validation_data
        loader, held = self._loading.training(
            data,
            targets,
            sample_weight,
            batch_size,
            validation=held,
            split=validation_split,
            steps=steps_per_epoch,
            prefetch=prefetch,
            workers=workers,
        )
        held_out = None if held is None else self._loading.validating(held, batch_size)
        self._weigh_samples(loader.sample.weights is not None)
        step = self.step
        feeds = self._feeder(loader, step.targets, self._session.inputs, step.sample_weight)
        if loader.checked:
            check_some_count(loader.sample, self.loss)
        group = self._group
        first = group is None or group.rank == 0
        hooks = [StopOnNaN(), *(c for c in callbacks if not isinstance(c, StopOnNaN))]
        hooks = [c for c in hooks if first or not c.first_rank_only]
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
            averaging=self.averaging,
            pruning=self.pruning,
            group=group,
        )
        statistics = self._batch_statistics(loader, epochs)
        if group is not None:
            check_ranks(group, self._agreed(run, held_out, resume), loader.batch_size)
            run.alike = rounding_alike(group, self._threads)
            progress = progress if first else False
        for metric in self.metrics:
            metric.reset()
        if resume is not None:
            run.resume(resume)
        elif not keep_optimizer_state:
            self._session.load_state({**self._session.state, **self.weights(), **self._fresh_slots()})
        if group is not None and resume is None:
            self._share_state(group)
        self.history = run.history
        run.begin()
        if group is not None:
            group.begin()
        for hook in hooks:
            hook.on_train_begin(run)
        run.agree_to_stop()
        with ProgressBar(progress) as bar:
            while run.epoch <= epochs and not run.stopped:
                bar.epoch(run.epoch, epochs, len(loader), run.batch)
                with contextlib.closing(run.batches(run.epoch, run.batch)) as batches:
                    for batch in batches:
                        run.advance(batch)
                        bar.step(run.figures() if bar.shown else run.last, batch.whole)
                        for hook in hooks:
                            hook.on_step_end(run)
                        if run.halted:
                            break
                if run.halted:
                    break
                run.check_weights()
                end_epoch(run, statistics)
                figures = {} if held_out is None else self._scalars(held_out)
                run.close_epoch({f"val_{name}": value for name, value in figures.items()})
                run.agree_to_stop()
                bar.close_epoch(run.history.rows[-1])
        for hook in hooks:
            hook.on_train_end(run)
        self.stopped = run.stopped
        if group is not None:
            step = self.step
            others = {*step.accumulated, *step.averages.values(), step.averaged, *step.masks.values()}
            slots = sum(self._session.state[name].nbytes for name in step.slots if name not in others)
            self.times = tuple(group.gather(group.times(run.seconds, slots)))
        return run.history

    def find_learning_rate(
        self,
        data: Samples | Inputs,
        targets: Array | None = None,
        *,
        sample_weight: Array | None = None,
        batch_size: int = 32,
        start: float = 1e-6,
        end: float = 10.0,
        steps: int = 100,
    ) -> RateFinding:
        """Try learning rates: one an update, from low to high, until all are tried or the loss diverges.

        The rate at which the loss falls fastest is a good one to begin with. Weights, optimizer state and
        statistics are afterwards as they were. Parameter groups keep their factors; the schedule is left out.

        Args:
            data, targets, sample_weight, batch_size: as `fit` takes them.
            start: the first rate.
            end: the last.
            steps: updates.

        Raises:
            ConfigError: rates that do not ascend, or data that can be gone through only once.
        """
        schedule = Sweep(first=start, last=end, updates=steps)
        loader, _ = self._loading.training(data, targets, sample_weight, batch_size)
        if not loader.repeatable:
            raise ConfigError(
                "a search for the learning rate uses up a generator; give a function that makes a fresh one"
            )
        self._weigh_samples(loader.sample.weights is not None)
        before = {name: array.copy() for name, array in self._session.state.items()}
        epochs, group = math.ceil(steps * self._accumulate / len(loader)) + 1, self._group
        run = Run(
            loader=loader,
            validation=None,
            epochs=epochs,
            feed=self._feeder(loader, self.step.targets, self._session.inputs, self.step.sample_weight),
            session=self._session,
            layout=self.step,
            metrics=(),
            callbacks=(),
            schedule=schedule,
            base_rate=1.0,
            accumulate=self._accumulate,
            seed=self.seed,
            identity={} if group is None else self._identity(loader, epochs),
            group=group,
        )
        if group is not None:
            check_ranks(group, self._agreed(run, None, None), loader.batch_size)
        try:
            self._session.load_state({**before, **self._fresh_slots()})
            if group is not None:
                self._share_state(group)
            return sweep(run, steps)
        finally:
            self._session.load_state(before)

    def _batch_statistics(self, loader: Batches, epochs: int) -> BatchStatistics | None:
        """What measures running statistics for averages that are taken at the ends of epochs."""
        if self.averaging is None or not self.averaging.takes(epochs, epochs) or not self.step.statistics:
            return None
        if not loader.repeatable:
            raise ConfigError(
                "SWA measures the statistics of batch normalization by going through the training data once "
                "more, which a generator cannot; give a function that makes a fresh generator"
            )
        options = {"engine": self._engine, "threads": self._threads, "options": self._options}
        return BatchStatistics(self._model, self.trainable, **options)

    def evaluate(
        self,
        data: Samples | Inputs,
        targets: Array | None = None,
        *,
        sample_weight: Array | None = None,
        batch_size: int = 256,
    ) -> dict[str, float | Array]:
        """Loss and metrics over data, in inference form.

        Args:
            data: as `fit` takes it.
            targets: [N, ...], where `data` is inputs alone.
            sample_weight: [N]: how much each sample counts in the loss.
            batch_size: samples that are computed at once.

        Returns:
            `loss`, then each metric by its name: a float, or an array for figures per class. All are over the
            samples that count, at any batch size; the loss is NaN where none does.
        """
        loader = self._loading.measuring(data, targets, sample_weight, batch_size)
        weighted = loader.sample.weights is not None
        name = self._weights_name() if weighted else None
        if weighted not in self._evaluations:
            model, totals, slots = with_loss(
                self._model, *self._losses, sample_weight=name, over_samples=self._over_samples
            )
            session = Session(model, engine=self._engine, threads=self._threads, options=self._options)
            self._evaluations[weighted] = session, totals, slots
        session, totals, slots = self._evaluations[weighted]
        session.load_weights(self.weights(), copy=False)
        feeds = self._feeder(loader, slots, session.inputs, name)
        metrics = [copy.deepcopy(m) for m in self.metrics]
        for metric in metrics:
            metric.reset()
        mean = MeanLoss(totals)
        output = next(iter(self.loss))
        group = self._group
        dealt = loader.epoch(0) if group is None else loader.dealt(group.rank, group.size)
        with contextlib.closing(dealt) as batches:
            for batch in batches:
                results = session.run(feeds(batch), [*totals, *totals.values(), output])
                mean.add(results)
                if batch.targets is not None:
                    for metric in metrics:
                        metric.update(results[output], batch.targets)
        if group is not None:
            mean.join(group)
            for metric in metrics:
                metric.join(group)
        return {"loss": mean.value(), **{m.name: m.result() for m in metrics}}

    def predict(
        self, inputs: Dataset | Mapping[str, Array] | Array, *, batch_size: int = 256, own_types: bool = False
    ) -> dict[str, Array]:
        """Outputs by name for inputs [N, ...], computed in batches.

        Args:
            inputs: a data set, an array by input, or an array for the only one.
            batch_size: samples that are computed at once.
            own_types: compute with weights and tensors of 16 bits where `model` has them; outputs are float32
                all the same.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape.
        """
        if isinstance(inputs, Dataset):
            arrays: Mapping[str, Array] = named_inputs(inputs, self.inputs)
        elif isinstance(inputs, Mapping):
            arrays = inputs
        else:
            arrays = {self.inputs[0].name: array_of(self.inputs[0].name, inputs)}
        if not arrays or any(np.ndim(a) == 0 for a in arrays.values()):
            check_inputs(self.inputs, arrays)
        session = self._inference
        if halved := own_types and bool(self.half_types):
            model = samples_first(self.model, self._axes)
            session = Session(model, engine=self._engine, threads=self._threads, options=self._options)
        else:
            session.load_weights(self.weights(), copy=False)
        arrays = in_types_of(session.inputs, arrays, self.half_types)
        count = len(next(iter(arrays.values())))
        if any(len(a) != count for a in arrays.values()):
            batch_size = max(map(len, arrays.values()))  # no samples, such as nodes and edges: all at once
        parts = [
            session.run({name: a[i : i + batch_size] for name, a in arrays.items()})
            for i in range(0, max(count, 1), batch_size)
        ]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return in_types_of(self.outputs, found, self.half_types) if halved else found

    def _scalars(self, loader: Batches) -> dict[str, float]:
        return {name: value for name, value in self.evaluate(loader).items() if isinstance(value, float)}

    def _feeder(
        self,
        batches: Batches,
        targets: Mapping[str, str],
        inputs: Sequence[TensorSpec],
        sample_weight: str | None,
    ) -> Callable[[Batch], dict[str, Array]]:
        """A function from batches to the arrays that a step, or an evaluation, takes."""
        dataset = batches.sample
        feed = feeder(dataset, self.inputs, targets, inputs, sample_weight)
        first = next(iter(targets))
        output = next(v for v in self._model.graph.outputs if v.name == first)
        check_dataset(dataset, output, self.loss[first], next(s for s in inputs if s.name == targets[first]))
        if batches.checked:
            return feed

        def look_and_feed(batch: Batch) -> dict[str, Array]:
            rows = batch.indices
            check_labels(
                batch.targets, lambda place: int(rows[place]), output, self.loss[first], dataset.name
            )
            return feed(batch)

        return look_and_feed

    def _share_state(self, group: Group) -> None:
        """Begin with the weights of rank 0."""
        state = {name: np.array(array, order="C") for name, array in self._session.state.items()}
        for name, array in state.items():
            if name not in self.step.shards:
                group.share(array)
        self._session.load_state(state)

    def _agreed(self, run: Run, validation: Batches | None, resume: str | Path | None) -> dict[str, Any]:
        """What all ranks have to have alike."""
        return {
            **{f"the {key}": value for key, value in run.identity.items()},
            **{f"the shape of parameter {name!r}": a.shape for name, a in self.weights().items()},
            "the number of epochs": run.epochs,
            "the synchronisation of batch normalization": self._synchronise,
            "the type in which gradients travel": self._exchange,
            "whether the optimizer's state is divided": self._shard,
            "the size of buckets of gradients": self._bucket_bytes,
            "the validation data": None if validation is None else validation.digest(),
            "whether the run is resumed": resume is not None,
        }

    def _identity(self, loader: Batches, epochs: int) -> dict[str, Any]:
        """What must be equal for a checkpoint to belong to this run."""
        # that of one rank: a run may go on with another number of them
        step = self.step if self._group is None else self._new_step(self.step.sample_weight, alone=True)
        return {
            "averaging": None if self.averaging is None else repr(self.averaging.over(epochs)),
            "pruning": None if self.pruning is None else f"{self.pruning!r} over {epochs} epochs",
            "training step": structure_of(step),
            "data": loader.digest(),
            "batch size": loader.batch_size,
            "order seed": loader.seed,
            "seed": self.seed,
            "optimizer": repr(self.optimizer),
            "schedule": repr(self.schedule.over(epochs)),
            "number of batches to an update": self._accumulate,
            "number of batches in an epoch": len(loader),
            "metrics": [m.name for m in self.metrics],
        }


def _sample_axes(model: ir.Model, given: int | Mapping[str, int]) -> Mapping[str, int]:
    if not isinstance(given, int):
        return given
    return axis_of_all(model, given) if given else {}


def _group_of(parallel: Literal["mpi"] | Communicator | None) -> Group | None:
    if isinstance(parallel, str):
        if parallel != "mpi":
            raise ConfigError(f"parallel must be 'mpi' or a communicator, got {parallel!r}")
        return ranks_of("mpi")
    return None if parallel is None or parallel.size == 1 else Group(parallel)

"""Optimizers, losses, metrics and callbacks with Keras's names, arguments and defaults."""

from __future__ import annotations

import csv
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import onnx_ir as ir

from onward import train
from onward.errors import ConfigError
from onward.graph import Array, Builder
from onward.train.run import Run

if TYPE_CHECKING:
    from onward.keras.models import Model

__all__ = ["callbacks", "losses", "optimizers"]


class optimizers:  # noqa: N801 - a namespace, as `keras.optimizers` is
    """Makers of optimizers with Keras's defaults."""

    @staticmethod
    def SGD(  # noqa: N802
        learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False
    ) -> train.Optimizer:
        """Stochastic gradient descent."""
        return train.SGD(learning_rate=float(learning_rate), momentum=momentum, nesterov=nesterov)

    @staticmethod
    def Adam(  # noqa: N802
        learning_rate: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7
    ) -> train.Optimizer:
        """Adam."""
        return train.Adam(
            learning_rate=float(learning_rate),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            inner_epsilon=True,
        )

    @staticmethod
    def AdamW(  # noqa: N802
        learning_rate: float = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> train.Optimizer:
        """Adam with decoupled weight decay."""
        return train.AdamW(
            learning_rate=float(learning_rate),
            weight_decay=weight_decay,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            inner_epsilon=True,
        )

    @staticmethod
    def RMSprop(  # noqa: N802
        learning_rate: float = 0.001, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-7
    ) -> train.Optimizer:
        """RMSprop."""
        return train.RMSprop(
            learning_rate=float(learning_rate),
            rho=rho,
            momentum=momentum,
            epsilon=epsilon,
            inner_epsilon=True,
        )

    @staticmethod
    def Adagrad(  # noqa: N802
        learning_rate: float = 0.001, initial_accumulator_value: float = 0.1, epsilon: float = 1e-7
    ) -> train.Optimizer:
        """Adagrad."""
        return train.Adagrad(
            learning_rate=float(learning_rate),
            initial_accumulator=initial_accumulator_value,
            epsilon=epsilon,
            inner_epsilon=True,
        )


_OPTIMIZERS: Mapping[str, Callable[[], train.Optimizer]] = {
    "sgd": optimizers.SGD,
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "rmsprop": optimizers.RMSprop,
    "adagrad": optimizers.Adagrad,
}


def optimizer_of(optimizer: str | train.Optimizer) -> train.Optimizer:
    """An optimizer by Keras's name, or as it is."""
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer.lower() not in _OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {optimizer!r}; there are {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[optimizer.lower()]()


@final
@dataclass(frozen=True)
class _Categorical(train.Loss):
    """-sum t log p over the last axis, mean over the rest, for targets that are shares of classes.

    p is the softmax of scores: a network that ends in Softmax is trained on what it applies Softmax to.
    """

    from_logits: bool = False

    def output(self, output: ir.Value) -> ir.Value:
        node = output.producer()
        softmax = node is not None and node.op_type == "Softmax" and not self.from_logits
        operand = node.inputs[0] if node is not None and softmax else None
        return output if operand is None else operand

    def target(self, output: ir.Value) -> tuple[ir.DataType, Any]:
        return train.MSE().target(output)

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        return g.ReduceMean(self.each(g, output, target), keepdims=0)

    def each(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        return g.Neg(g.ReduceSum(g.Mul(target, g.LogSoftmax(output, axis=-1)), [-1], keepdims=0))


@final
@dataclass(frozen=True)
class LossSpec:
    """A loss as Keras names it.

    Attributes:
        kind: which; "other" for a loss of `onward.train`.
        from_logits: whether the network gives scores; else it ends in softmax or sigmoid.
        loss: the loss of `onward.train`.
    """

    kind: Literal["sparse", "categorical", "binary", "other"]
    loss: train.Loss
    from_logits: bool = False


class losses:  # noqa: N801
    """Makers of losses."""

    @staticmethod
    def SparseCategoricalCrossentropy(from_logits: bool = False) -> LossSpec:  # noqa: N802
        """Cross-entropy against class numbers."""
        return LossSpec("sparse", train.CrossEntropy(), from_logits)

    @staticmethod
    def CategoricalCrossentropy(from_logits: bool = False, label_smoothing: float = 0.0) -> LossSpec:  # noqa: N802
        """Cross-entropy against rows of shares, one-hot ones among them."""
        if label_smoothing:
            return LossSpec("categorical", train.CrossEntropy(label_smoothing=label_smoothing), from_logits)
        return LossSpec("categorical", _Categorical(from_logits), from_logits)

    @staticmethod
    def BinaryCrossentropy(from_logits: bool = False) -> LossSpec:  # noqa: N802
        """Binary cross-entropy."""
        return LossSpec("binary", train.BinaryCrossEntropy(), from_logits)

    @staticmethod
    def MeanSquaredError() -> LossSpec:  # noqa: N802
        """Mean squared error."""
        return LossSpec("other", train.MSE())

    @staticmethod
    def MeanAbsoluteError() -> LossSpec:  # noqa: N802
        """Mean absolute error."""
        return LossSpec("other", train.L1())

    @staticmethod
    def Huber(delta: float = 1.0) -> LossSpec:  # noqa: N802
        """Huber's loss."""
        return LossSpec("other", train.Huber(delta))


_LOSSES: Mapping[str, Callable[[], LossSpec]] = {
    "sparse_categorical_crossentropy": losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": losses.CategoricalCrossentropy,
    "binary_crossentropy": losses.BinaryCrossentropy,
    "mse": losses.MeanSquaredError,
    "mean_squared_error": losses.MeanSquaredError,
    "mae": losses.MeanAbsoluteError,
    "mean_absolute_error": losses.MeanAbsoluteError,
    "huber": losses.Huber,
}


def loss_of(loss: str | LossSpec | train.Loss) -> LossSpec:
    """A loss by Keras's name, or as it is."""
    if isinstance(loss, LossSpec):
        return loss
    if isinstance(loss, train.Loss):
        return LossSpec("other", loss)
    if loss not in _LOSSES:
        raise ConfigError(f"unknown loss {loss!r}; there are {', '.join(_LOSSES)}")
    return _LOSSES[loss]()


METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "acc": "accuracy",
    "sparse_categorical_accuracy": "accuracy",
    "categorical_accuracy": "accuracy",
    "binary_accuracy": "accuracy",
    "mae": "mae",
    "mean_absolute_error": "mae",
    "mse": "mse",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "r2_score": "r2",
}
"""Keras's names of metrics, and those of `onward.train`."""


class Callback:
    """What may happen at the ends of epochs and of training; `self.model` is the model."""

    model: Model

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Before epoch number `epoch`, from 0."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """After epoch number `epoch`, from 0; `logs` are its figures."""

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """After the last epoch."""


class _LambdaCallback(Callback):
    def __init__(
        self,
        on_epoch_end: Callable[[int, Mapping[str, float]], object] | None = None,
        on_train_begin: Callable[[Mapping[str, float]], object] | None = None,
        on_train_end: Callable[[Mapping[str, float]], object] | None = None,
    ) -> None:
        self._epoch, self._begin, self._end = on_epoch_end, on_train_begin, on_train_end

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        if self._begin is not None:
            self._begin(logs or {})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._epoch is not None:
            self._epoch(epoch, logs or {})

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self._end is not None:
            self._end(logs or {})


class _Watching(Callback):
    """Watches a figure; NaN is no improvement, and is warned of."""

    def __init__(self, monitor: str, mode: Literal["auto", "min", "max"], min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ConfigError(f"mode must be auto, min or max, got {mode!r}")
        higher = mode == "max" or (mode == "auto" and monitor.endswith(("acc", "accuracy", "score")))
        self.monitor = monitor
        self._sign = 1.0 if higher else -1.0
        self._delta = abs(min_delta)
        self.best: float | None = None

    def improved(self, logs: Mapping[str, float] | None) -> bool:
        if not logs or self.monitor not in logs:
            raise ConfigError(
                f"there is no figure {self.monitor!r} to watch; there are {', '.join(logs or {})}"
            )
        figure = self._sign * logs[self.monitor]
        if math.isnan(figure):
            warnings.warn(
                f"{self.monitor} is NaN, which {type(self).__name__.lstrip('_')} takes for no improvement",
                RuntimeWarning,
                stacklevel=3,
            )
            return False
        if self.best is not None and not figure > self.best + self._delta:
            return False
        self.best = figure
        return True


class _EarlyStopping(_Watching):
    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self._patience, self._verbose = patience, verbose
        self._restore, self._start = restore_best_weights, start_from_epoch
        self.stopped_epoch = 0
        self.best_epoch = 0
        self._wait = 0
        self._weights: list[Array] | None = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self.best, self._wait, self._weights = None, 0, None
        self.stopped_epoch = self.best_epoch = 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if epoch < self._start:
            return
        if self._restore and self._weights is None:
            self._weights = self.model.get_weights()
        self._wait += 1
        if self.improved(logs):
            self._wait, self.best_epoch = 0, epoch
            if self._restore:
                self._weights = self.model.get_weights()
        elif self._wait >= self._patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self.stopped_epoch and self._verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self._weights is not None:
            self.model.set_weights(self._weights)


class _ModelCheckpoint(_Watching):
    def __init__(
        self,
        filepath: str | Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        if not str(filepath).endswith(".onnx"):
            raise ConfigError(f"filepath {str(filepath)!r} must end in .onnx: models are saved as ONNX")
        self._path, self._best_only, self._verbose = str(filepath), save_best_only, verbose

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if self._best_only and not self.improved(logs):
            return
        path = self._path.format(epoch=epoch + 1, **(logs or {}))
        self.model.save(path)
        if self._verbose:
            print(f"Epoch {epoch + 1}: saved {path}")


class _ReduceLROnPlateau(_Watching):
    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ConfigError(f"factor must be above 0 and below 1, got {factor}")
        self._factor, self._patience, self._verbose = factor, patience, verbose
        self._cooldown, self._least = cooldown, min_lr
        self._wait = self._cooling = 0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self.best, self._wait, self._cooling = None, 0, 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        improved = self.improved(logs)
        if self._cooling:
            self._cooling, self._wait = self._cooling - 1, 0
        if improved:
            self._wait = 0
            return
        if self._cooling:
            return
        self._wait += 1
        rate = self.model.learning_rate
        if self._wait < self._patience or rate <= self._least:
            return
        self.model.learning_rate = max(rate * self._factor, self._least)
        self._cooling, self._wait = self._cooldown, 0
        if self._verbose:
            print(f"Epoch {epoch + 1}: the learning rate becomes {self.model.learning_rate:.4g}")


class _LearningRateScheduler(Callback):
    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self._schedule, self._verbose = schedule, verbose
        places = inspect.signature(schedule).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._takes_rate = sum(p.kind in positional for p in places) > 1

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        now = (self.model.learning_rate,) if self._takes_rate else ()
        rate = float(self._schedule(epoch, *now))
        if not 0 <= rate < math.inf:
            raise ConfigError(f"epoch {epoch}: the schedule gives the learning rate {rate}")
        self.model.learning_rate = rate
        if self._verbose:
            print(f"Epoch {epoch + 1}: the learning rate is {rate:.4g}")


class _CSVLogger(Callback):
    def __init__(self, filename: str | Path, separator: str = ",", append: bool = False) -> None:
        self._path, self._separator, self._append = Path(filename), separator, append
        self._rows: list[dict[str, float]] = []

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._rows = []
        if self._append and self._path.exists():
            with self._path.open(newline="") as file:
                self._rows = list(csv.DictReader(file, delimiter=self._separator))  # type: ignore[arg-type]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._rows.append({"epoch": epoch, **(logs or {})})
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="", delimiter=self._separator)
            writer.writeheader()
            writer.writerows(self._rows)


class callbacks:  # noqa: N801
    """Keras's callbacks."""

    Callback = Callback
    LambdaCallback = _LambdaCallback
    EarlyStopping = _EarlyStopping
    LearningRateScheduler = _LearningRateScheduler
    ModelCheckpoint = _ModelCheckpoint
    ReduceLROnPlateau = _ReduceLROnPlateau
    CSVLogger = _CSVLogger


@final
class Bridge(train.Callback):
    """Tells Keras's callbacks what a run of `onward.train` does."""

    def __init__(self, model: Model, hooks: list[Callback], names: Callable[[str], str], first: int) -> None:
        self._model, self._hooks, self._names, self._first = model, hooks, names, first

    def on_train_begin(self, run: Run) -> None:
        self._begin_epoch(run, self._first)

    def _begin_epoch(self, run: Run, epoch: int) -> None:
        for hook in self._hooks:
            hook.on_epoch_begin(epoch, {})
        run.base_rate = self._model.learning_rate

    def on_epoch_end(self, run: Run) -> None:
        row = run.history.rows[-1]
        logs = {self._names(k): float(v) for k, v in row.items() if k not in ("epoch", "learning_rate")}
        for hook in self._hooks:
            hook.on_epoch_end(self._first + len(run.history) - 1, logs)
        if self._model.stop_training and not run.stopped:
            run.stop("a callback asked for it")
        if not run.stopped and len(run.history) < run.epochs:
            self._begin_epoch(run, self._first + len(run.history))


def to_categorical(x: Any, num_classes: int | None = None) -> Array:
    """Class numbers [N, ...] as one-hot rows, float64 [N, ..., num_classes]."""
    labels = np.asarray(x, np.int64)
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    return np.eye(count)[labels]

"""What the classifier and the regressor share: networks, training, prediction, pickling, export."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from onward.data import Dataset, Normalization, NumberPreparation, Preparation
from onward.engine import Session
from onward.engine.engines import EngineName
from onward.errors import ConfigError
from onward.graph import Array, Builder
from onward.model import from_bytes, to_bytes
from onward.nn import Dense, Flatten, Network, Sequential
from onward.passes import prepend_preparation, to_inference
from onward.train import Callback, EarlyStopping, Loss, Optimizer, Trainer, optimizer_named
from onward.verify import Report, export

__all__ = ["Estimator", "NetworkSource", "append"]

NetworkSource: TypeAlias = "Network | ir.Model | str | Path | Callable[[tuple[int, ...], int], Network]"
_PREDICTED_AT_ONCE = 1024


@dataclass(eq=False, repr=False)
class Estimator(BaseEstimator):  # type: ignore[misc]
    """A network with scikit-learn's interface; the final classes are its two kinds.

    Its fields, and those that a kind adds, are the parameters that scikit-learn reads from the constructor.
    """

    network: NetworkSource | None = None
    _: KW_ONLY
    hidden: Sequence[int] = (100,)
    activation: str = "relu"
    optimizer: str | Optimizer = "adamw"
    learning_rate: float | None = 0.005
    epochs: int = 100
    batch_size: int = 32
    standardize: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    patience: int = 10
    callbacks: Sequence[Callback] = ()
    random_state: Any = None
    engine: EngineName = "auto"
    threads: int | None = None
    verbose: bool = False

    loss_curve_: list[float] = field(init=False)

    # -- what the two kinds say -----------------------------------------------------------------------------

    @abstractmethod
    def _loss(self) -> Loss:
        """What is minimised."""

    @abstractmethod
    def _units(self) -> int:
        """How many numbers the network gives for a sample."""

    @abstractmethod
    def _finished(self, model: ir.Model) -> ir.Model:
        """The trained network with what turns its output into the estimator's answer."""

    @abstractmethod
    def _strata(self, targets: Array) -> Array | None:
        """Classes whose shares a held-out part keeps; None: any part will do."""

    # -- training -------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        for name, lowest in (("epochs", 1), ("batch_size", 1), ("patience", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < lowest:
                raise ValueError(f"{name} must be an integer of at least {lowest}, got {value!r}")
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must be between 0 and 1 for early stopping, "
                f"got {self.validation_fraction!r}"
            )

    def _fit(
        self, X: Array, targets: Array, task: str, weights: Array | None, *, first: bool, epochs: int
    ) -> None:
        """Train on checked samples; `first` makes the network and measures the samples."""
        self._check_options()
        seed = int(check_random_state(self.random_state).randint(1 << 31))
        X = np.asarray(X, np.float32)
        if not np.isfinite(X).all():
            raise ValueError("Input X holds a value too large for dtype('float32').")
        if first:
            self._measure(X, weights)
            self._trainer: Trainer | None = self._new_trainer(self._source(X.shape[1:], seed), seed)
        trainer = self._training()
        name = trainer.inputs[0].name
        prepared = self._preparation().numbers["X"].apply(X) if self.standardize else X
        data = Dataset(
            {name: prepared},
            targets,
            name="training samples",
            task=task,  # type: ignore[arg-type]
            weights=weights,
        )
        validation, hooks = None, list(self.callbacks)
        if self.early_stopping and first:
            data, validation = self._held_out(data, seed)
            hooks.append(EarlyStopping(patience=self.patience))
        history = trainer.fit(
            data,
            validation=validation,
            epochs=epochs,
            batch_size=int(self.batch_size),
            callbacks=hooks,
            progress=bool(self.verbose),
            keep_optimizer_state=not first,
        )
        before: list[float] = [] if first else self.loss_curve_
        self.loss_curve_ = [*before, *(row["loss"] for row in history.rows)]
        self.n_iter_ = len(self.loss_curve_)
        self._publish(trainer)

    def _checked_weights(self, sample_weight: Any, X: Array) -> Array | None:
        """Sample weights [N], at least 0 and not all 0; None where all count alike."""
        if sample_weight is None:
            return None
        weights: Array = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if (weights < 0).any() or not weights.any():
            raise ValueError("sample weights must be at least 0, and not all of them 0")
        return weights

    def _measure(self, X: Array, weights: Array | None) -> None:
        if self.standardize:
            fitted = Normalization.fit(Dataset({"X": X}, weights=weights), "X")
            self._mean, self._std = fitted.mean, fitted.std

    def _preparation(self) -> Preparation:
        normalization = Normalization("X", self._mean, self._std)
        return Preparation({"X": NumberPreparation(np.dtype(np.float32), 1.0, normalization)})

    def _held_out(self, data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
        from sklearn.model_selection import train_test_split

        assert data.targets is not None
        kept, held = train_test_split(
            np.arange(len(data)),
            test_size=self.validation_fraction,
            random_state=seed % (1 << 31),
            stratify=self._strata(data.targets),
        )
        return data.take(kept), data.take(held)

    def _source(self, shape: tuple[int, ...], seed: int) -> ir.Model | str | Path | Network:
        if self.network is None:
            layers: list[Any] = [] if len(shape) == 1 else [Flatten()]
            layers += [Dense(int(n), self.activation, weight_initializer="he_normal") for n in self.hidden]
            return Sequential([*layers, Dense(self._units())], input_shape=shape, name="mlp", seed=seed)
        if callable(self.network):
            return self.network(shape, self._units())
        return self.network

    def _new_trainer(self, source: Any, seed: int) -> Trainer:
        rate = {} if self.learning_rate is None else {"learning_rate": float(self.learning_rate)}
        optimizer = (
            optimizer_named(self.optimizer, **rate) if isinstance(self.optimizer, str) else self.optimizer
        )
        trainer = Trainer(
            source, self._loss(), optimizer, seed=seed, engine=self.engine, threads=self.threads
        )
        units = self._units()
        shape = trainer.outputs[0].shape
        if len(trainer.inputs) != 1:
            raise ConfigError(f"the network takes {len(trainer.inputs)} inputs; an estimator has one, X")
        if shape is not None and isinstance(shape[-1], int) and len(shape) == 2 and shape[1] != units:
            raise ConfigError(
                f"the network gives {shape[1]} numbers for a sample where {units} are needed; give `network` "
                "as a function of (shape of a sample, numbers needed)"
            )
        return trainer

    def _training(self) -> Trainer:
        """The trainer; after unpickling it is made anew where the last one stood."""
        if self._trainer is None:
            network, state, seed = self._suspended
            self._trainer = self._new_trainer(from_bytes(network), seed)
            self._trainer.load_state(state)
        return self._trainer

    def _publish(self, trainer: Trainer) -> None:
        """Make the model that predicts: raw samples in, the estimator's answer out."""
        network = to_inference(trainer.model)
        model = self._finished(network)
        if self.standardize:
            renamed = self._preparation().renamed({"X": trainer.inputs[0].name})
            model = prepend_preparation(model, renamed)
        self.model_ = model
        self._open()

    def _open(self) -> None:
        self._session: Session | None = Session(self.model_, engine=self.engine, threads=self.threads)

    # -- prediction -----------------------------------------------------------------------------------------

    def _checked(self, X: Any, **options: Any) -> Any:
        return validate_data(
            self, X, **options, dtype=[np.float32, np.float64], allow_nd=self.network is not None
        )

    def _answers(self, X: Any) -> Array:
        """The model's answers for samples, [N, ...]."""
        check_is_fitted(self, "model_")
        samples = np.asarray(self._checked(X, reset=False), np.float32)
        assert self._session is not None, "a fitted estimator has a session"
        name = self._session.inputs[0].name
        parts = [
            next(iter(self._session.run({name: samples[i : i + _PREDICTED_AT_ONCE]}).values()))
            for i in range(0, len(samples), _PREDICTED_AT_ONCE)
        ]
        return np.concatenate(parts)

    def export(self, path: str | Path, **options: Any) -> Report | None:
        """Write the model as ONNX once onnxruntime agrees: it takes X as given here and answers alike.

        Args:
            path: the .onnx file to create or replace.
            options: of `onward.verify.export`.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` has not been called.
            VerificationError: onnxruntime computes something else.
        """
        check_is_fitted(self, "model_")
        return export(self.model_, path, **options)

    # -- pickling -------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:
            trainer = self._training()
            arrays = {name: np.array(a) for name, a in trainer.state.items()}
            state["_suspended"] = (to_bytes(trainer.model), arrays, trainer.seed)
            state["model_"] = to_bytes(self.model_)
            state["_trainer"] = state["_session"] = None
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        content = dict(state)
        if "model_" in content:
            content["model_"] = from_bytes(content["model_"])
        super().__setstate__(content)
        if "model_" in content:
            self._open()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")


def append(model: ir.Model, write: Callable[[Builder, ir.Value], ir.Value]) -> ir.Model:
    """The model with its first output followed by further nodes; the output keeps its name."""
    model = model.clone()
    graph = model.graph
    before = graph.outputs[0]
    name = before.name
    before.name = f"{name}/network"
    after = write(Builder(graph), before)
    after.name = name
    graph.outputs[0] = after
    return model

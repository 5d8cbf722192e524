"""`Sequential` and `Model` in Keras's shape: compile, fit, evaluate, predict, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import onnx_ir as ir

from onward import nn, train
from onward.data import Dataset, Loader
from onward.engine import Session
from onward.errors import ConfigError, InputError
from onward.graph import Array, TensorSpec, spec_of
from onward.keras.layers.base import Layer, Weight, forget_names
from onward.keras.tensors import Input, KerasTensor
from onward.keras.training import METRICS, Bridge, Callback, LossSpec, loss_of, optimizer_of
from onward.model import load
from onward.nn.summary import Summary, summarize
from onward.train.task import metric_for
from onward.verify import Report, export

__all__ = ["History", "Model", "Sequential", "load_model"]


_seed = 0


def set_random_seed(seed: int) -> None:
    """Seed the models that are made from now on: equal seeds give equal bits.

    First weights follow from the names of layers too, so the numbers in those begin anew.
    """
    global _seed
    _seed = int(seed)
    forget_names()


@final
@dataclass
class History:
    """What `fit` returns.

    Attributes:
        history: the figures of each epoch by name, `val_…` for validation.
        epoch: the epochs' numbers, from 0.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)


class Model:
    """A network from handles of `keras.Input` and of layers.

    Args:
        inputs: a handle, or several.
        outputs: a handle, or several.
        name: the ONNX model's name.
        seed: decides the first weights, the order of samples and dropout; None: what
            `keras.utils.set_random_seed` said, at first 0.
    """

    def __init__(
        self,
        inputs: KerasTensor | Sequence[KerasTensor],
        outputs: KerasTensor | Sequence[KerasTensor],
        *,
        name: str = "model",
        seed: int | None = None,
    ) -> None:
        sources = [inputs] if isinstance(inputs, KerasTensor) else list(inputs)
        results = [outputs] if isinstance(outputs, KerasTensor) else list(outputs)
        self._begin(seed)
        self._take(
            nn.Model(
                [s.handle for s in sources], [r.last() for r in results], name=name, seed=self.seed
            ).model
        )

    def _begin(self, seed: int | None) -> None:
        self.seed = _seed if seed is None else seed
        self.stop_training = False
        self._layers: list[Layer] = []
        self._network: ir.Model | None = None
        self._trainer: train.Trainer | None = None
        self._options: tuple[Any, LossSpec, dict[str, str]] | None = None
        self._metrics: list[str | Callable[[Array, Array], Any]] = []
        self._session: Session | None = None
        self._epochs_done = 0
        self._rate: float | None = None

    def _take(self, model: ir.Model) -> None:
        self._network = model

    # -- structure ------------------------------------------------------------------------------------------

    @property
    def model(self) -> ir.Model:
        """The ONNX model with the weights of now: a copy once it has been trained."""
        network = self._built()
        return network if self._trainer is None else self._trainer.model

    @property
    def layers(self) -> list[Layer]:
        """The layers that have been added to a `Sequential`."""
        return list(self._layers)

    def _built(self) -> ir.Model:
        if self._network is None:
            raise ConfigError(
                "the network has no input shape yet: begin with keras.Input(shape=...), or call fit first"
            )
        return self._network

    @property
    def _inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec_of(v) for v in self._built().graph.inputs)

    def summary(self) -> Summary:
        """Prints the layers with output shapes and parameters, and returns the table."""
        table = summarize(self.model)
        print(table)
        return table

    def count_params(self) -> int:
        """How many numbers the weights are."""
        return sum(a.size for a in self.get_weights())

    # -- weights --------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, Array]:
        graph = self._built().graph
        current = {} if self._trainer is None else dict(self._trainer.weights())
        found = {
            name: v.const_value.numpy() for name, v in graph.initializers.items() if v.const_value is not None
        }
        return {**found, **current}

    def _weights(self) -> list[Weight]:
        if not self._layers:
            raise ConfigError(
                "weights in Keras's layout are those of a Sequential; use `model` for the others"
            )
        return [w for layer in self._layers for w in layer.weights()]

    def get_weights(self) -> list[Array]:
        """Copies of all weights, layer by layer, in Keras's order and layouts."""
        arrays = self._arrays()
        return [w.to_keras(arrays[w.name]) for w in self._weights()]

    @property
    def learning_rate(self) -> float:
        """The optimizer's, of the epochs to come; callbacks may set it.

        Raises:
            ConfigError: the model is not compiled.
        """
        if self._options is None:
            raise ConfigError("call compile(optimizer, loss, metrics) first: it chooses the learning rate")
        return float(self._options[0].learning_rate) if self._rate is None else self._rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = float(value)

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Replace all weights by arrays as `get_weights` gives them.

        Raises:
            ConfigError: another number of arrays, or another shape.
        """
        places = self._weights()
        if len(weights) != len(places):
            raise ConfigError(f"the network has {len(places)} weights, {len(weights)} arrays are given")
        arrays = self._arrays()
        new: dict[str, Array] = {}
        for place, weight in zip(places, weights, strict=True):
            like = new.get(place.name, arrays[place.name])
            wanted = place.to_keras(like).shape
            if np.shape(weight) != wanted:
                raise ConfigError(f"weight {place.name!r} has shape {wanted}, not {np.shape(weight)}")
            new[place.name] = place.from_keras(np.asarray(weight), like)
        for name, array in new.items():
            self._built().graph.initializers[name].const_value = ir.tensor(array.copy(), name=name)
        if self._trainer is not None:
            state = dict(self._trainer.state)
            self._trainer.load_state({**state, **{n: a for n, a in new.items() if n in state}})
        self._session = None

    # -- training -------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: str | train.Optimizer = "rmsprop",
        loss: str | LossSpec | train.Loss | None = None,
        metrics: Sequence[str | Callable[[Array, Array], Any]] = (),
    ) -> None:
        """Choose how to train; weights stay as they are.

        Args:
            optimizer: by Keras's name, of `keras.optimizers` or of `onward.train`.
            loss: by Keras's name, of `keras.losses` or of `onward.train`.
            metrics: Keras's names: accuracy, mae, mse, ...; or functions of (outputs, targets), NumPy arrays.

        Raises:
            ConfigError: an unknown name.
        """
        if loss is None:
            raise ConfigError("compile needs a loss")
        if unknown := [m for m in metrics if isinstance(m, str) and m not in METRICS]:
            raise ConfigError(f"unknown metric {unknown[0]!r}; there are {', '.join(METRICS)}")
        if self._trainer is not None:
            self._network = self._trainer.model
        self._metrics = list(metrics)
        names = {METRICS[m]: ("accuracy" if m == "acc" else m) for m in metrics if isinstance(m, str)}
        self._options = (optimizer_of(optimizer), loss_of(loss), names)
        self._rate = None
        self._trainer = self._session = None

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | Literal["auto"] = "auto",
        callbacks: Sequence[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: tuple[Any, Any] | tuple[Any, Any, Any] | None = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
    ) -> History:
        """Train; a second call goes on with the optimizer's moments, as Keras's does.

        Args:
            x: an array [N, ...], or arrays by input name, or a list of them.
            y: targets [N, ...].
            batch_size: samples a step; 32 by default.
            epochs: the number of the last epoch; none is trained where it is not above `initial_epoch`.
            verbose: 0: silent; 1 or 2: progress; "auto": on a terminal.
            callbacks: of `keras.callbacks`.
            validation_split: this share of the samples, the last ones, is for validation.
            validation_data: (x, y), or (x, y, sample weights), for validation.
            shuffle: draw a new order each epoch.
            class_weight: for each class number how much its samples count in the loss; 1 for those left out.
            sample_weight: [N]: how much each sample counts. As in Keras the loss of a batch is divided by its
                number of samples.
            initial_epoch: the number of the first epoch, from 0.

        Raises:
            ConfigError: options or data that do not fit the network.
        """
        arrays = self._named(x)
        targets = np.asarray(y) if y is not None else None
        if targets is None:
            raise ConfigError("fit needs targets y")
        count = len(targets)
        weights = self._sample_weights(targets, class_weight, sample_weight)
        held: tuple[dict[str, Array], Array, Array | None] | None = None
        if validation_data is not None:
            held_x, held_y, *more = validation_data
            held = self._named(held_x), np.asarray(held_y), np.asarray(more[0]) if more else None
        elif validation_split:
            if not 0 < validation_split < 1:
                raise ConfigError(f"validation_split must be between 0 and 1, got {validation_split}")
            cut = int(count * (1 - validation_split))
            of_held = None if weights is None else weights[cut:]
            held = {n: a[cut:] for n, a in arrays.items()}, targets[cut:], of_held
            arrays, targets = {n: a[:cut] for n, a in arrays.items()}, targets[:cut]
            weights = None if weights is None else weights[:cut]
        trainer = self._training()
        hooks = list(callbacks or ())
        self.stop_training = False
        for hook in hooks:
            hook.model = self
            hook.on_train_begin({})
        assert self._options is not None
        names = self._options[2]

        def named(figure: str) -> str:
            base = figure.removeprefix("val_")
            return figure.replace(base, names.get(base, base))

        history = History()
        loader = Loader(
            self._dataset(arrays, targets, weights),
            batch_size or 32,
            self.seed + self._epochs_done,
            shuffle=shuffle,
        )
        if epochs <= initial_epoch:  # as in Keras: nothing is left to train
            for hook in hooks:
                hook.on_train_end({})
            return history
        done = trainer.fit(
            loader,
            validation=None if held is None else self._dataset(*held),
            epochs=epochs - initial_epoch,
            batch_size=batch_size or 32,
            callbacks=[Bridge(self, hooks, named, initial_epoch)],
            progress=None if verbose == "auto" else bool(verbose),
            keep_optimizer_state=self._epochs_done > 0,
        )
        self._epochs_done += len(done)
        self._session = None
        for hook in hooks:
            hook.on_train_end({})
        for row in done.rows:
            history.epoch.append(initial_epoch + int(row["epoch"]) - 1)
            for name, value in row.items():
                if name not in ("epoch", "learning_rate"):
                    history.history.setdefault(named(name), []).append(float(value))
        return history

    def evaluate(
        self,
        x: Any,
        y: Any,
        batch_size: int | None = None,
        verbose: int | Literal["auto"] = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """The loss, or a list of the loss and the metrics; by name with `return_dict`."""
        trainer = self._training()
        weights = None if sample_weight is None else np.asarray(sample_weight)
        data = self._dataset(self._named(x), np.asarray(y), weights)
        found = trainer.evaluate(data, batch_size=batch_size or 256)
        assert self._options is not None
        names = self._options[2]
        figures = {names.get(k, k): float(np.asarray(v)) for k, v in found.items()}
        if verbose not in (0, "auto"):
            print(" - ".join(f"{k}: {v:.4f}" for k, v in figures.items()))
        if return_dict:
            return figures
        values = list(figures.values())
        return values[0] if len(values) == 1 else values

    def predict(self, x: Any, batch_size: int | None = None, verbose: int | Literal["auto"] = "auto") -> Any:
        """Outputs for inputs [N, ...]: an array, or a list where the network has several."""
        arrays = self._named(x)
        if self._session is None:
            self._session = Session(self.model)
        specs = {s.name: s for s in self._session.inputs}
        size = batch_size or 256
        count = len(next(iter(arrays.values())))
        parts = [
            self._session.run(
                {n: a[i : i + size].astype(specs[n].dtype, copy=False) for n, a in arrays.items()}
            )
            for i in range(0, max(1, count), size)
        ]
        outputs = [np.concatenate([p[name] for p in parts]) for name in parts[0]]
        return outputs[0] if len(outputs) == 1 else outputs

    def __call__(self, x: Any) -> Any:
        """Outputs for a batch of samples."""
        return self.predict(x)

    def save(self, filepath: str | Path) -> Report | None:
        """Write the network as ONNX, once onnxruntime agrees with it; an existing file is replaced.

        Raises:
            ConfigError: the name does not end in .onnx.
        """
        if not str(filepath).endswith(".onnx"):
            raise ConfigError(f"{str(filepath)!r} must end in .onnx: models are saved as ONNX")
        return export(self.model, filepath)

    def _training(self) -> train.Trainer:
        if self._options is None:
            raise ConfigError("call compile(optimizer, loss, metrics) before training or evaluating")
        if self._trainer is None:
            optimizer, spec, _ = self._options
            network = self._built()
            output = network.graph.outputs[0]
            self._check_end(spec, output)
            chosen = [
                metric_for(METRICS[m], self._metric_loss(spec), output)
                if isinstance(m, str)
                else train.FunctionMetric(m)
                for m in self._metrics
            ]
            self._trainer = train.Trainer(
                network, spec.loss, optimizer, metrics=chosen, weighted_mean="samples", seed=self.seed
            )
            self._epochs_done = 0
        return self._trainer

    def _metric_loss(self, spec: LossSpec) -> train.Loss:
        return train.MSE() if spec.kind == "categorical" and self._shares(spec) else spec.loss

    @staticmethod
    def _shares(spec: LossSpec) -> bool:
        return not isinstance(spec.loss, train.CrossEntropy)

    @staticmethod
    def _check_end(spec: LossSpec, output: ir.Value) -> None:
        """Refuse a loss of probabilities on scores, and the other way round: both train, but wrongly."""
        node = output.producer()
        last = "" if node is None else node.op_type
        wanted = {"sparse": "Softmax", "categorical": "Softmax", "binary": "Sigmoid"}.get(spec.kind)
        if wanted is None:
            return
        if spec.from_logits and last == wanted:
            raise ConfigError(f"from_logits=True, but the network ends in {wanted}: take one of the two away")
        if not spec.from_logits and last != wanted:
            raise ConfigError(
                f"the loss takes probabilities, but the network does not end in {wanted}: add the "
                "activation, or say from_logits=True"
            )

    # -- data -----------------------------------------------------------------------------------------------

    def _named(self, x: Any) -> dict[str, Array]:
        if isinstance(x, Mapping):
            return {name: np.asarray(a) for name, a in x.items()}
        if isinstance(x, (list, tuple)) and len(self._inputs) > 1:
            if len(x) != len(self._inputs):
                raise InputError(f"the network takes {len(self._inputs)} inputs, {len(x)} are given")
            return {spec.name: np.asarray(a) for spec, a in zip(self._inputs, x, strict=True)}
        return {self._inputs[0].name: np.asarray(x)}

    def _sample_weights(
        self, targets: Array, class_weight: Mapping[int, float] | None, sample_weight: Any
    ) -> Array | None:
        """How much each sample counts."""
        if class_weight is None:
            return None if sample_weight is None else np.asarray(sample_weight, np.float32)
        if sample_weight is not None:
            raise ConfigError("give class_weight or sample_weight, not both")
        assert self._options is not None
        one_hot = self._options[1].kind == "categorical"
        labels = targets.argmax(axis=-1) if one_hot else targets.reshape(len(targets), -1)[:, 0]
        return np.array([float(class_weight.get(int(c), 1.0)) for c in labels], np.float32)

    def _dataset(self, arrays: dict[str, Array], targets: Array, weights: Array | None = None) -> Dataset:
        assert self._options is not None
        spec = self._options[1]
        if spec.kind == "sparse":
            if targets.ndim > 1 and targets.shape[-1] == 1:
                targets = targets[..., 0]
            if targets.dtype.kind == "f" and (targets == np.floor(targets)).all():
                targets = targets.astype(np.int64)
            return Dataset(arrays, targets, weights=weights)
        if spec.kind == "categorical" and not self._shares(spec):
            if not (np.isin(targets, (0, 1)).all() and (targets.sum(axis=-1) == 1).all()):
                raise ConfigError("label_smoothing is for one-hot targets")
            return Dataset(arrays, targets.argmax(axis=-1), weights=weights)
        if targets.ndim == 1:
            targets = targets[:, None]
        return Dataset(arrays, targets.astype(np.float32), task="regression", weights=weights)


@final
class Sequential(Model):
    """A network that is a chain of layers.

    Args:
        layers: layers; the first may be what `keras.Input` gave.
        name: the ONNX model's name.
        seed: decides the first weights, the order of samples and dropout; None: what
            `keras.utils.set_random_seed` said, at first 0.
    """

    def __init__(
        self, layers: Sequence[Layer | KerasTensor] = (), *, name: str = "sequential", seed: int | None = None
    ) -> None:
        self._begin(seed)
        self._name = name
        self._source: KerasTensor | None = None
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer | KerasTensor) -> None:
        """Append a layer."""
        if isinstance(layer, KerasTensor):
            if self._layers or self._source is not None:
                raise ConfigError("keras.Input comes first in a Sequential")
            self._source = layer
            return
        if not isinstance(layer, Layer):
            raise ConfigError(f"a Sequential is made of layers, not of {type(layer).__name__}")
        if not self._layers and self._source is None and layer.input_shape is not None:
            self._source = Input(layer.input_shape)
        self._layers.append(layer)
        self._network = self._trainer = self._session = None

    def pop(self) -> None:
        """Take the last layer away."""
        if not self._layers:
            raise ConfigError("there is no layer to take away")
        self._layers.pop()
        self._network = self._trainer = self._session = None

    def _built(self) -> ir.Model:
        if self._network is None and self._source is not None and self._layers:
            x = self._source
            for layer in self._layers:
                x = layer(x)
            model = nn.Model(self._source.handle, x.last(), name=self._name, seed=self.seed)
            self._network = model.model
        return super()._built()

    def _named(self, x: Any) -> dict[str, Array]:
        if self._source is None and not isinstance(x, Mapping):
            array = np.asarray(x)
            dtype = "int64" if array.dtype.kind in "iu" and array.dtype.itemsize > 1 else "float32"
            self._source = Input(array.shape[1:], dtype)
        return super()._named(x)


@final
class _Loaded(Model):
    """A network from a file."""

    def __init__(self, model: ir.Model) -> None:
        self._begin(None)
        self._take(model)


def load_model(filepath: str | Path) -> Model:
    """A network from an ONNX file, to predict with, or to compile and train on.

    Raises:
        StorageError, InvalidModelError: the file cannot be read.
    """
    return _Loaded(load(filepath))

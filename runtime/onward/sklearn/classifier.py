"""`OnwardClassifier`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target, unique_labels

from onward.graph import Array
from onward.sklearn._estimator import Estimator, append
from onward.train import BinaryCrossEntropy, CrossEntropy, Loss

__all__ = ["OnwardClassifier"]


@final
@dataclass(eq=False, repr=False)
class OnwardClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """A network that tells classes apart: softmax, or sigmoids for several labels a sample.

    Args:
        network: None: dense layers as `hidden` says; a function of (shape of a sample, numbers needed) that
            gives a network of `onward.nn`; a network, a model or an .onnx file, which is fine-tuned.
        hidden: units of the hidden layers.
        activation: between them, by name.
        optimizer: by name, or one of `onward.train`.
        learning_rate: of an optimizer given by name; None: the optimizer's own.
        epochs: passes over the samples; `partial_fit` makes one.
        batch_size: samples a step.
        standardize: measure each column (axis 1) at the first fit and train on zero mean and unit variance;
            the exported model does the same inside.
        class_weight: None, "balanced" or weights by class.
        early_stopping: hold samples out and stop when their loss has not improved for `patience` epochs.
        validation_fraction: how many are held out; classes keep their shares.
        callbacks: of `onward.train`.
        random_state: decides weights, order and held-out samples.
        engine, threads: as in `onward.Trainer`.
        verbose: show a progress bar.

    Attributes:
        classes_: the labels, sorted; for several labels a sample the numbers of the columns.
        model_: the ONNX model: float32 X in, probabilities out.
        n_iter_: epochs done.
        loss_curve_: the training loss of each.
    """

    _: KW_ONLY
    class_weight: Mapping[Any, float] | str | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> OnwardClassifier:
        """Train from new weights.

        Args:
            X: numbers [N, F]; [N, ...] for a `network` of one's own.
            y: labels [N]; or 0 and 1 of shape [N, L], several labels a sample.
            sample_weight: [N], at least 0: how much each sample counts; 2 is the sample twice.

        Raises:
            ValueError: samples or labels that cannot be used.
            OnwardError: a network or an option that does not fit them.
        """
        X, y = self._samples(X, y, reset=True)
        weights = self._checked_weights(sample_weight, X)
        self._learn_classes(y)
        self._class_weights = self._weights(y)
        self._fit(X, *self._encoded(y), weights, first=True, epochs=self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> OnwardClassifier:
        """Make one pass over samples, from where the last call left weights and optimizer.

        Args:
            X, y, sample_weight: as in `fit`.
            classes: every label there will be; needed at the first call.

        Raises:
            ValueError: as `fit`, and for a label that is not among the classes.
        """
        first = not hasattr(self, "model_")
        X, y = self._samples(X, y, reset=first)
        if first:
            self._learn_classes(y if classes is None else np.asarray(classes) if y.ndim == 1 else y)
            self._class_weights = self._weights(y)
        weights = self._checked_weights(sample_weight, X)
        self._fit(X, *self._encoded(y), weights, first=first, epochs=1)
        return self

    def predict(self, X: Any) -> Array:
        """The most probable label of each sample [N]; for several labels a sample 0 and 1 [N, L]."""
        probabilities = self.predict_proba(X)
        if self._multilabel:
            return (probabilities > 0.5).astype(np.int64)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """Probabilities [N, C] in the order of `classes_`, float64, each row summing to 1; or [N, L]."""
        found = self._answers(X).astype(np.float64)
        return found if self._multilabel else found / found.sum(axis=1, keepdims=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = False
        return tags

    def _samples(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Array]:
        """Checked samples; labels in a single column are taken as [N], with scikit-learn's warning."""
        X, y = self._checked(X, y=y, multi_output=True, reset=reset)
        one_column = y.ndim == 2 and y.shape[1] == 1
        return X, column_or_1d(y, warn=True) if one_column else y

    def _learn_classes(self, y: Array) -> None:
        kind = type_of_target(y, input_name="y")
        if kind not in ("binary", "multiclass", "multilabel-indicator"):
            raise ValueError(
                f"Unknown label type: {kind}. y must hold labels, or 0 and 1 in several columns."
            )
        self._multilabel = kind == "multilabel-indicator"
        self.classes_ = np.arange(y.shape[1]) if self._multilabel else unique_labels(y)
        if len(self.classes_) < 2 and not self._multilabel:
            raise ValueError(f"y holds one class, {self.classes_[0]}; at least two are needed")

    def _encoded(self, y: Array) -> tuple[Array, str]:
        if self._multilabel:
            return np.asarray(y, np.float32), "regression"
        if unknown := sorted(set(np.unique(y)) - set(self.classes_)):
            raise ValueError(f"y holds {unknown[0]!r}, which is not among the classes {list(self.classes_)}")
        return np.searchsorted(self.classes_, y).astype(np.int64), "classification"

    def _weights(self, y: Array) -> tuple[float, ...] | None:
        if self.class_weight is None:
            return None
        if self._multilabel:
            raise ValueError("class_weight is for one label a sample")
        return tuple(map(float, compute_class_weight(self.class_weight, classes=self.classes_, y=y)))

    def _loss(self) -> Loss:
        return BinaryCrossEntropy() if self._multilabel else CrossEntropy(class_weights=self._class_weights)

    def _units(self) -> int:
        return len(self.classes_)

    def _finished(self, model: ir.Model) -> ir.Model:
        output = model.graph.outputs[0]
        if self._loss().output(output) is not output:
            return model  # it ends in what gives probabilities
        if self._multilabel:
            return append(model, lambda g, x: g.Sigmoid(x))
        return append(model, lambda g, x: g.Softmax(x, axis=1))

    def _strata(self, targets: Array) -> Array | None:
        return None if self._multilabel else targets

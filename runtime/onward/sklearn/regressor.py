"""`OnwardRegressor`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir
from sklearn.base import RegressorMixin

from onward.errors import ConfigError
from onward.graph import Array
from onward.sklearn._estimator import Estimator, append
from onward.train import Loss, loss_named

__all__ = ["OnwardRegressor"]


@final
@dataclass(eq=False, repr=False)
class OnwardRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """A network that predicts numbers.

    Targets are standardized with X, and the exported model gives them in their own units.

    Args:
        network, hidden, activation, optimizer, learning_rate, epochs, batch_size, standardize,
            early_stopping, validation_fraction, patience, callbacks, random_state, engine, threads,
            verbose: as in `OnwardClassifier`.
        loss: "mse", "l1" or "huber", or a loss of `onward.train`.

    Attributes:
        model_: the ONNX model: float32 X in, numbers [N, K] out.
        n_iter_: epochs done.
        loss_curve_: the training loss of each, of standardized targets.
    """

    _: KW_ONLY
    loss: str | Loss = "mse"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> OnwardRegressor:
        """Train from new weights.

        Args:
            X: numbers [N, F]; [N, ...] for a `network` of one's own.
            y: numbers [N] or [N, K].
            sample_weight: [N], at least 0: how much each sample counts; 2 is the sample twice.

        Raises:
            ValueError: samples or targets that cannot be used.
            OnwardError: a network or an option that does not fit them.
        """
        X, y = self._checked(X, y=y, multi_output=True, y_numeric=True)
        weights = self._checked_weights(sample_weight, X)
        self._one_column = y.ndim == 1
        columns = np.asarray(y, np.float64).reshape(len(y), -1)
        self._target_mean, self._target_std = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
        if self.standardize:
            mean = np.average(columns, axis=0, weights=weights)
            spread = np.sqrt(np.average(np.square(columns - mean), axis=0, weights=weights))
            self._target_mean, self._target_std = mean, np.where(spread > 0, spread, 1.0)
        self._fit(X, self._scaled(columns), "regression", weights, first=True, epochs=self.epochs)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> OnwardRegressor:
        """Make one pass over samples, from where the last call left weights and optimizer.

        Columns are measured, with `standardize`, at the first call.
        """
        if not hasattr(self, "model_"):
            epochs, self.epochs = self.epochs, 1
            try:
                return self.fit(X, y, sample_weight)
            finally:
                self.epochs = epochs
        X, y = self._checked(X, y=y, multi_output=True, y_numeric=True, reset=False)
        columns = np.asarray(y, np.float64).reshape(len(y), -1)
        if columns.shape[1] != len(self._target_mean):
            raise ValueError(f"y has {columns.shape[1]} columns after {len(self._target_mean)}")
        weights = self._checked_weights(sample_weight, X)
        self._fit(X, self._scaled(columns), "regression", weights, first=False, epochs=1)
        return self

    def predict(self, X: Any) -> Array:
        """Numbers [N], or [N, K] where the targets had columns; float64."""
        found = self._answers(X).astype(np.float64)
        found = found.reshape(len(found), -1)
        return found[:, 0] if self._one_column else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _scaled(self, columns: Array) -> Array:
        return ((columns - self._target_mean) / self._target_std).astype(np.float32)

    def _loss(self) -> Loss:
        return loss_named(self.loss) if isinstance(self.loss, str) else self.loss

    def _units(self) -> int:
        return len(self._target_mean)

    def _finished(self, model: ir.Model) -> ir.Model:
        if not self.standardize:
            return model
        mean, std = (a.astype(np.float32) for a in (self._target_mean, self._target_std))
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ConfigError("the targets are too large for float32")
        return append(model, lambda g, x: g.Add(g.Mul(x, std), mean))

    def _strata(self, targets: Array) -> Array | None:
        return None

"""The learning rate follows the batch where it is said what batch it is for."""

from __future__ import annotations

from onward.runs.assembly import optimizer_of
from onward.runs.config import RunConfig


def test_the_learning_rate_is_scaled_from_a_base_batch() -> None:
    def rate(**options: object) -> float:
        config = RunConfig.model_validate({"model": {"name": "mlp"}, "data": {"spec": "iris"}, **options})
        return optimizer_of(config).learning_rate

    given = {"optimizer": {"name": "sgd", "learning_rate": 0.1}}
    assert rate(**given, batch_size=64, base_batch=256) == 0.025
    assert rate(batch_size=64, base_batch=32) == 2 * rate()
    assert rate(**given, batch_size=64) == 0.1

"""The search suggests a rate that trains, and leaves the trainer as it was."""

from __future__ import annotations

import numpy as np
import pytest
from tests.train import networks

from onward.data import IterableBatches
from onward.errors import ConfigError
from onward.train import SGD, SWA, Adam, CrossEntropy, Trainer


def digits() -> tuple[np.ndarray, np.ndarray]:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam()], ids=["sgd", "adam"])
def test_the_suggestion_trains(optimizer) -> None:
    x, y = digits()

    def loss(rate: float) -> float:
        chosen = type(optimizer)(rate, **({"momentum": 0.9} if isinstance(optimizer, SGD) else {}))
        trainer = Trainer(networks.mlp(64, 32, 10), optimizer=chosen)
        return trainer.fit(x[:1200], y[:1200], epochs=2, progress=False).rows[-1]["loss"]

    found = Trainer(networks.mlp(64, 32, 10), optimizer=optimizer).find_learning_rate(x[:1200], y[:1200])
    assert found.suggestion is not None
    assert loss(found.suggestion) < 0.7 * loss(found.suggestion / 30)
    assert loss(found.suggestion) < 0.8
    assert list(found.rates) == sorted(found.rates)
    assert len(found.rates) == 100 or found.diverged
    assert f"{found.suggestion:.2g}" in str(found)
    assert len(found.table(7)) == 7
    plot = found.plot().splitlines()
    assert len(plot) == 15
    assert max(map(len, plot)) <= 80


def test_nothing_is_changed_by_it() -> None:
    x, y = networks.blobs()
    trainer = Trainer(networks.mlp(dropout=0.3), optimizer=Adam(0.01), accumulate=2, averaging=SWA(start=1))
    trainer.fit(x, y, epochs=1, batch_size=10, progress=False)
    before = {name: array.copy() for name, array in trainer.state.items()}
    found = trainer.find_learning_rate(x, y, batch_size=10, steps=20)
    assert len(found.rates) == len(found.losses) <= 20
    for name, array in trainer.state.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    again = trainer.find_learning_rate(x, y, batch_size=10, steps=20)
    assert again == found


def test_rates_are_those_that_were_asked_for() -> None:
    x, y = networks.blobs()
    trainer = Trainer(networks.mlp(), CrossEntropy(ignore_index=2), SGD())
    found = trainer.find_learning_rate(x, y, start=1e-5, end=1e-3, steps=10)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-5, 1e-3, 10), rtol=1e-6)
    assert not found.diverged


def test_refusals() -> None:
    x, y = networks.blobs()
    trainer = Trainer(networks.mlp())
    with pytest.raises(ConfigError, match="above 0 and ascending"):
        trainer.find_learning_rate(x, y, start=1, end=0.1)
    with pytest.raises(ConfigError, match="at least 10 updates"):
        trainer.find_learning_rate(x, y, steps=3)
    with pytest.raises(ConfigError, match="uses up a generator"):
        trainer.find_learning_rate(IterableBatches(iter([(x, y)]), "x", steps=1))
    with pytest.raises(ConfigError, match="search lower ones"):
        trainer.find_learning_rate(x, y, start=1e30, end=1e38)

from __future__ import annotations

import numpy as np
import pytest

from onward.data.counter import Draws, permutation
from onward.errors import ConfigError


def test_permutation_is_one_and_depends_on_seed_and_stream() -> None:
    orders = {tuple(permutation(50, seed, stream)) for seed in range(3) for stream in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_first_words_of_splitmix64() -> None:
    """The published reference output of SplitMix64 for the seed 1234567."""
    words = Draws(np.array([1234567], np.uint64)).bits(3)
    assert words.tolist() == [[6457827717110365317, 3203168211198807973, 9817491932198370423]]


def test_draws_depend_on_every_counter_and_nothing_else() -> None:
    index = np.arange(100)
    base = Draws.of(1, 2, index).bits(4)
    np.testing.assert_array_equal(Draws.of(1, 2, index[37:38]).bits(4), base[37:38])
    np.testing.assert_array_equal(Draws.of(1, 2, index).bits(9)[:, :4], base)
    others = [
        Draws.of(2, 1, index),
        Draws.of(1, 3, index),
        Draws.of(1, 2, index).child(0),
        Draws.of(1, 2, index + 100),
    ]
    words = np.concatenate([base, *(d.bits(4) for d in others)]).ravel()
    assert len(np.unique(words)) == words.size


def test_uniform_integers_and_normal_have_their_moments() -> None:
    draws = Draws.of(0, 0, np.arange(500))
    uniform, normal = draws.uniform(200), draws.normal(201)
    assert normal.shape == (500, 201)
    assert normal.dtype == np.float32
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * np.sqrt(1 / 12 / uniform.size)
    assert abs(normal.mean(dtype=np.float64)) < 5 / np.sqrt(normal.size)
    assert abs(normal.std(dtype=np.float64) - 1) < 5 / np.sqrt(2 * normal.size)
    integers = draws.integers(-2, 2, 100)
    assert np.unique(integers).tolist() == [-2, -1, 0, 1, 2]
    share = np.bincount(integers.ravel() + 2) / integers.size
    assert np.abs(share - 0.2).max() < 5 * np.sqrt(0.16 / integers.size)


def test_bad_seed() -> None:
    with pytest.raises(ConfigError, match="seed"):
        Draws.of(-1, 0, np.arange(2))

"""Plans as another processor would get them: every constant of the tuning moved, at each width, by any team.

`make test-perturbed` runs all tests that depend on the machine in this way; here are a few plans of it.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
from tests.compile.test_plans_zoo import check_training, make

from onward.compile.codegen.target import host_caches
from onward.compile.codegen.tuning import tuning_for


@pytest.mark.parametrize(("seed", "lanes", "threads"), [(1, 16, 3), (2, 8, 1), (3, 4, 4), (4, 8, 2)])
@pytest.mark.parametrize("name", ["lenet5", "lstm_classifier", "resnet20", "transformer_encoder"])
def test_moved_constants_change_nothing_beyond_rounding(
    name: str, seed: int, lanes: int, threads: int, usable_lanes: list[int]
) -> None:
    if lanes not in usable_lanes:
        pytest.skip("this machine has no vectors of that width")
    moved = asdict(tuning_for(host_caches(), seed))
    check_training(make(name, 3, steps=1), threads=threads, lanes=lanes, **moved)

import numpy as np
import pytest
from benchmarks.suite.compare import DifferentResultsError, Settings, check, compare


class Side:
    """Counts its steps since the last reset; each takes the seconds it is told to."""

    def __init__(self, seconds, log, name, results=(1.0, 0.9, 0.8, 0.7)):
        self.seconds, self.log, self.name, self.results = seconds, log, name, results
        self.done = 0

    def reset(self):
        self.done = 0

    def times(self, count, clock=None):
        self.log.append((self.name, self.done, count))
        results = []
        for _ in range(count):
            results.append(np.array(self.results[min(self.done, len(self.results) - 1)], np.float32))
            self.done += 1
        return [self.seconds] * count, results


def test_the_ratio_is_ours_by_the_peers() -> None:
    found = compare(Side(0.5, [], "ours"), Side(2.0, [], "peer"), Settings(0.01, 2))
    assert found.ratio == 0.25


def test_sides_take_turns_and_each_turn_starts_afresh() -> None:
    log = []
    compare(Side(0.1, log, "ours"), Side(0.1, log, "peer"), Settings(0.5, 3))
    turns = log[4:]
    assert len(turns) == 12
    for warm, timed in zip(turns[::2], turns[1::2], strict=True):
        assert warm[1:] == (0, 1)
        assert timed[:2] == (warm[0], 1)
    assert [name for name, *_ in turns[::2]] == ["peer", "ours", "ours", "peer", "peer", "ours"]


def test_different_losses_are_refused_before_anything_is_timed() -> None:
    log = []
    ours, peer = Side(0.1, log, "ours"), Side(0.1, log, "peer", (1.0, 0.9, 0.9, 0.9))
    with pytest.raises(DifferentResultsError, match="step 3"):
        compare(ours, peer, Settings(1.0, 3))
    assert len(log) == 4


def test_the_first_loss_has_the_narrow_tolerance() -> None:
    near = np.float32(1.001)
    check([np.float32(1), near], [np.float32(1), np.float32(1)])
    with pytest.raises(DifferentResultsError, match="step 1"):
        check([near], [np.float32(1)])


def test_logits_have_the_narrow_tolerance_at_every_step() -> None:
    a = np.ones((2, 3), np.float32)
    b = a.copy()
    b[1, 2] += 1e-3
    with pytest.raises(DifferentResultsError, match="step 2"):
        check([a, b], [a, a])


def test_nan_is_a_difference() -> None:
    with pytest.raises(DifferentResultsError):
        check([np.float32("nan")], [np.float32(1)])

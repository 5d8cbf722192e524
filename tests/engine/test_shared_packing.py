"""Plans that take over some of what others packed, and pack the rest."""

from __future__ import annotations

from onward.compile.spec import PlanCall
from onward.engine.plan import _waiting


def test_calls_that_are_left_out_take_no_barrier_with_them() -> None:
    # the first call's threads are waited for after the second, which another plan has made
    prologue = (
        PlanCall(0, (), no_barrier=True),
        PlanCall(1, (), no_barrier=False),
        PlanCall(2, (), no_barrier=True),
        PlanCall(3, (), no_barrier=False),
    )
    assert [s.no_barrier for s in _waiting(prologue, [0, 2]) if isinstance(s, PlanCall)] == [False, False]
    assert _waiting(prologue, [0, 1, 2, 3]) == list(prologue)

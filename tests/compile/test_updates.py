"""Updates are put together without changing what anything reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onward.compile.codegen.target import host_target
from onward.compile.items import Call, Item, Slot
from onward.compile.kernels.element import Element, contiguous, element
from onward.compile.kernels.expression import operand
from onward.compile.tensors import Buffer, Place, Tensor
from onward.compile.updates import joined

TARGET = host_target()


def _state(size: int) -> Tensor:
    array = np.zeros(size, np.float32)
    return Tensor(Buffer(array.nbytes, Place.FIXED, array=array), (size,), (1,), array.dtype)


def _update(state: Tensor, gradient: Tensor, rate: float = 0.5) -> Call:
    """state −= rate gradient."""
    whole = contiguous(())
    spec = Element((), (whole, whole), (whole,), (operand(0) - operand(1) * rate,))
    slots: dict[str, Slot] = {"x0": state, "x1": gradient, "y0": state, "batch": state.size}
    return _call(spec, slots, state.size)


def _call(spec: Element, slots: dict[str, Slot], batch: int) -> Call:
    return Call(element(spec, TARGET), slots, "call", batch, None, spec)


def _names(items: Sequence[Item]) -> list[str]:
    return [item.kernel.name if isinstance(item, Call) else "" for item in items]


def test_updates_alike_become_one_call() -> None:
    states = [_state(n) for n in (3, 100, 7)]
    calls = joined([_update(s, _state(s.size)) for s in states], TARGET)
    assert _names(calls) == ["batched update"]
    assert [calls[0].slots[f"end {i}"] for i in range(3)] == [3, 103, 110]  # type: ignore[union-attr]
    assert set(calls[0].writes) == {s.buffer for s in states}


def test_other_expressions_are_other_calls() -> None:
    calls = [_update(_state(5), _state(5), rate) for rate in (0.5, 0.25, 0.5)]
    assert sorted(_names(joined(calls, TARGET))) == ["batched update", "element"]


def test_large_tensors_and_memory_of_the_arena_stay_where_they_are() -> None:
    elements = TARGET.tuning.update_small // 4 + 1
    large, gradient = _state(elements), _state(elements)
    passing = Tensor(Buffer(20), (5,), (1,), np.dtype(np.float32))
    calls = [_update(large, gradient), _update(_state(elements), _state(elements))]
    calls += [_update(passing, _state(5)), _update(passing, _state(5))]
    assert joined(calls, TARGET) == tuple(calls)


def test_an_update_does_not_pass_what_reads_its_result() -> None:
    first, second = _state(5), _state(5)
    calls = [_update(first, _state(5)), _update(second, first), _update(_state(5), _state(5))]
    after = joined(calls, TARGET)
    assert _names(after) == ["element", "batched update"]
    assert after[0] is calls[0]


def test_an_update_does_not_pass_what_overwrites_its_operand() -> None:
    gradient = Tensor(Buffer(20), (5,), (1,), np.dtype(np.float32))
    source = _state(5)
    whole = contiguous(())
    spec = Element((), (whole,), (whole,), (operand(0),))
    overwrite = _call(spec, {"x0": source, "y0": gradient, "batch": 5}, 5)
    calls = [_update(_state(5), gradient), overwrite, _update(_state(5), gradient)]
    assert joined(calls, TARGET) == tuple(calls)

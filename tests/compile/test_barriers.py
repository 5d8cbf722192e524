"""Barriers follow from what kernels declare: every access that is left out loses one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.compile.accesses import check_declared
from tests.compile.units import TARGET

from onward.compile.barriers import barriers_before, no_barriers
from onward.compile.items import Call
from onward.compile.kernels.element import Element, contiguous, element
from onward.compile.kernels.expression import operand
from onward.compile.kernels.kernel import Access, Kernel, Parameter
from onward.compile.tensors import Buffer, Tensor

_WHOLE = contiguous(())
_KERNEL = element(Element((), (_WHOLE,), (_WHOLE,), (operand(0) * 2.0,)), TARGET)


def _declared(kernel: Kernel, **accesses: Access) -> Kernel:
    parameters = tuple(Parameter(p.name, accesses.get(p.name, p.access)) for p in kernel.parameters)
    return replace(kernel, parameters=parameters)


def _call(x: Buffer, y: Buffer, kernel: Kernel = _KERNEL) -> Call:
    tensors = {n: Tensor(b, (5,), (1,), np.dtype(np.float32)) for n, b in (("x0", x), ("y0", y))}
    return Call(kernel, {**tensors, "batch": 5}, "call", 5)


def test_calls_wait_for_what_they_read_and_for_readers_of_what_they_write() -> None:
    a, b, c, d = (Buffer(20) for _ in range(4))
    assert no_barriers([_call(a, b), _call(a, c)]) == [True, False]
    assert no_barriers([_call(a, b), _call(b, c)]) == [False, False]
    assert no_barriers([_call(a, b), _call(c, a)]) == [False, False]
    assert no_barriers([_call(a, b), _call(c, b)]) == [False, False]
    # not only for the call before
    assert no_barriers([_call(a, b), _call(c, d), _call(b, c)]) == [True, False, False]
    assert barriers_before([_call(a, b), _call(a, c), _call(b, d)]) == [0, 0, 1]


@pytest.mark.parametrize(("slot", "wrong"), [("x0", Access.WRITE), ("y0", Access.READ)])
def test_a_declaration_that_is_reversed_loses_a_barrier_and_is_found(slot: str, wrong: Access) -> None:
    reversed_ = _declared(_KERNEL, **{slot: wrong})
    a, b, c = (Buffer(20) for _ in range(3))
    before, after = (b, c) if slot == "x0" else (a, b)
    first = _call(a, b, reversed_ if slot == "y0" else _KERNEL)
    second = _call(before, after, reversed_) if slot == "x0" else _call(b, c)
    assert no_barriers([_call(a, b), _call(b, c)]) == [False, False]
    if slot == "y0":  # nobody is said to write b
        assert no_barriers([first, second]) == [True, False]
    assert reversed_.reads != _KERNEL.reads
    with pytest.raises(AssertionError):
        check_declared(reversed_)

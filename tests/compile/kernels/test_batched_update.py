from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.batched_update import batched_update, row_slots
from onward.compile.kernels.element import Element, contiguous, scalar
from onward.compile.kernels.expression import operand
from onward.errors import ShapeError

Run = Callable[..., None]


def _update() -> Element:
    """Momentum with weight decay: parameter, gradient, velocity, rate and decay give parameter, velocity."""
    parameter, gradient, velocity, rate, decay = (operand(i) for i in range(5))
    moved = velocity * 0.9 + gradient + parameter * decay
    whole, single = contiguous(()), scalar(())
    operands = (whole, whole, whole, single, single)
    return Element((), operands, (whole, whole), (parameter - moved * rate, moved))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[1, 0, 300, 17, 2000, 64], [5], [0, 0], [4096, 1, 1]])
def test_many_tensors_in_one_update(sizes: list[int], threads: int, target: Target, run: Run) -> None:
    rng = np.random.default_rng(0)
    tensors = [[rng.standard_normal(n + 1).astype(np.float32) for n in sizes] for _ in range(3)]
    before = [[t.copy() for t in row] for row in tensors]
    rates = [np.array([r], np.float32) for r in np.linspace(0.1, 0.5, len(sizes))]
    decay = np.array([0.01], np.float32)
    spec = _update()
    values: dict[str, object] = {"rows": len(sizes)}
    for i, end in enumerate(np.cumsum(sizes).tolist()):
        p, g, v = (row[i] for row in tensors)
        values |= dict(zip(row_slots(spec, i), (end, p, g, v, rates[i], decay, p, v), strict=True))
    run(batched_update(spec, len(sizes), target), target, values, threads)
    for i, n in enumerate(sizes):
        old_p, old_g, old_v = (row[i][:n].astype(np.float64) for row in before)
        moved = 0.9 * old_v + old_g + 0.01 * old_p
        np.testing.assert_allclose(tensors[0][i][:n], old_p - rates[i] * moved, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(tensors[2][i][:n], moved, rtol=1e-5, atol=1e-6)
        for row, old in zip(tensors, before, strict=True):
            assert row[i][n] == old[i][n]


def test_only_flat_passes_are_swept(target: Target) -> None:
    with pytest.raises(ShapeError, match="single float32"):
        batched_update(Element((3,), (contiguous((3,)),), (contiguous((3,)),), (operand(0),)), 2, target)
    with pytest.raises(ShapeError, match="single float32"):
        batched_update(Element((), (contiguous((), "bool"),), (contiguous(()),), (operand(0),)), 2, target)

"""What the tests of rules share: one request, lowered and run, beside the interpreter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tests.compile.plans import interpreted, planned
from tests.compile.units import Build, kinds, lowered_of, model_of

from onward.compile.items import Fallback
from onward.graph import Array

__all__ = ["check", "declined"]


def check(build: Build, kernels: list[str], feeds: Mapping[str, Array] | None = None) -> None:
    """A small graph meets these kernels, by parts of their names, in this order; and its values are right.

    Inputs that are not given are random: integers are 0, 1 or 2.
    """
    found = kinds(lowered_of(build))
    assert len(found) == len(kernels), found
    for name, wanted in zip(found, kernels, strict=True):
        assert wanted in name, found
    model, rng = model_of(build), np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        drawn = rng.standard_normal(value.shape.numpy())
        if not value.dtype.is_floating_point():
            drawn = rng.integers(0, 3, value.shape.numpy())
        feed[value.name or ""] = np.asarray(drawn, value.dtype.numpy())
    feed |= feeds or {}
    (want,), _ = interpreted(model, {}, [feed])
    got = planned(model, feed).run(feed)
    assert set(got) == set(want)
    for name, exact in want.items():
        assert got[name].dtype == exact.dtype
        scale = float(np.abs(exact).max(initial=0)) if exact.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(got[name], exact, rtol=0, atol=1e-5 * scale, err_msg=name)


def declined(build: Build, reason: str) -> None:
    """NumPy computes the one node of a graph, for this reason."""
    lowered = lowered_of(build)
    assert kinds(lowered) == ["numpy"]
    (item,) = lowered.calls
    assert isinstance(item, Fallback)
    assert item.reason == reason

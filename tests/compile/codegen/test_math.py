from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen import math as native
from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import host_target
from onward.compile.codegen.values import Value

Array = npt.NDArray[np.floating]
LANES = [n for n in (16, 8, 4) if n <= host_target().lanes]


def apply(function: Callable[[Function, Value], Value], x: Array, lanes: int) -> Array:
    target = host_target(lanes).typed(str(x.dtype))
    lanes = target.lanes
    module = Module(target)
    f = module.entry()
    source, sink = f.load(f.arguments[0], "ptr"), f.load(f.arguments[0], "ptr", 1)
    count = f.load(f.arguments[0], "i64", 2)
    with f.range(0, count, lanes) as i:
        mask = f.mask(count - i)
        f.vstore(function(f, f.vload(source, i, mask)), sink, i, mask)
    f.ret()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        Jit(target).address(module.text())
    )
    out = np.full(x.size + 1, 77, x.dtype)
    args = np.array([x.ctypes.data, out.ctypes.data, x.size], np.int64)
    call(args.ctypes.data, 0, 1)
    assert out[-1] == 77
    return out[:-1]


def sweep(low: float, high: float, dtype: type[np.floating] = np.float32) -> Array:
    rng = np.random.default_rng(3)
    tiny = rng.uniform(-1, 1, 500) * 10.0 ** rng.integers(-44, 1, 500)
    grid = np.linspace(low, high, 20011)
    return np.concatenate([grid, tiny[(tiny > low) & (tiny < high)]]).astype(dtype)


def relative_error(got: Array, want: npt.NDArray[np.float64], floor: float) -> float:
    return float(np.max(np.abs(got - want) / np.maximum(np.abs(want), floor)))


NORMAL = float(np.finfo(np.float32).tiny)
vector_erf = np.vectorize(math.erf)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(
    ("function", "reference", "low", "high", "bound"),
    [
        (native.exp, np.exp, -87.3, 88.7, 1.2e-7),
        (native.log, np.log, 1e-38, 3e38, 1.2e-7),
        (native.log, np.log, 0.3, 3.0, 2.4e-7),
        (native.tanh, np.tanh, -12, 12, 2.4e-7),
        (native.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -87, 40, 2.4e-7),
        (native.erf, vector_erf, -5, 5, 2.4e-7),
        (native.rsqrt, lambda x: 1 / np.sqrt(x), 1e-6, 1e6, 1.2e-7),
    ],
)
def test_relative_error(
    lanes: int,
    function: Callable[[Function, Value], Value],
    reference: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    low: float,
    high: float,
    bound: float,
) -> None:
    x = sweep(low, high)
    want = reference(x.astype(np.float64))
    assert relative_error(apply(function, x, lanes), want, NORMAL) < bound


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(
    ("function", "reference", "low", "high", "bound"),
    [
        (native.exp, np.exp, -708, 709.7, 3e-16),
        (native.log, np.log, 1e-307, 1.7e308, 3e-16),
        (native.log, np.log, 0.3, 3.0, 4e-16),
        (native.tanh, np.tanh, -25, 25, 5e-16),
        (native.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -708, 40, 5e-16),
        (native.erf, vector_erf, -7, 7, 5e-16),
        (native.rsqrt, lambda x: 1 / np.sqrt(x), 1e-6, 1e6, 3e-16),
        (lambda f, x: native.quotients(f, [native.tanh_fraction(f, x)])[0], np.tanh, -25, 25, 5e-16),
        (
            lambda f, x: native.quotients(f, [native.sigmoid_fraction(f, x)] * 3)[1],
            lambda x: 1 / (1 + np.exp(-x)),
            *(-235, 40, 2e-15),
        ),
    ],
)
def test_relative_error_of_doubles(
    lanes: int,
    function: Callable[[Function, Value], Value],
    reference: Callable[[npt.NDArray[np.longdouble]], npt.NDArray[np.longdouble]],
    low: float,
    high: float,
    bound: float,
) -> None:
    x = sweep(low, high, np.float64)
    want = reference(x if function is native.erf else x.astype(np.longdouble))
    assert relative_error(apply(function, x, lanes), want, float(np.finfo(np.float64).tiny)) < bound


@pytest.mark.parametrize("lanes", LANES)
def test_limits_of_doubles(lanes: int) -> None:
    large = np.array([709.8, 1e300, -744.5, -745.2, -1e300])
    got = apply(native.exp, large, lanes)
    np.testing.assert_array_equal(got[[0, 1, 3, 4]], [np.inf, np.inf, 0, 0])
    assert got[2] == 5e-324
    x = np.linspace(-744, -709, 301)
    assert np.all(np.abs(apply(native.exp, x, lanes) - np.exp(x)) <= 1.5 * 5e-324 + np.exp(x) * 4e-16)
    tiny = np.array([5e-324, 1e-310, -3e-309])
    np.testing.assert_array_equal(apply(native.tanh, tiny, lanes), tiny)
    assert relative_error(apply(native.log, tiny[:2], lanes), np.log(tiny[:2]), 1.0) < 3e-16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lanes", LANES)
def test_limits(lanes: int, dtype: type[np.floating]) -> None:
    nan, inf = math.nan, math.inf
    special = SPECIAL.astype(dtype)
    np.testing.assert_array_equal(apply(native.exp, special, lanes), [nan, inf, 0, 1, 1])
    np.testing.assert_array_equal(apply(native.log, special, lanes), [nan, inf, nan, -inf, -inf])
    np.testing.assert_array_equal(apply(native.tanh, special, lanes), [nan, 1, -1, 0, 0])
    np.testing.assert_array_equal(apply(native.sigmoid, special, lanes), [nan, 1, 0, 0.5, 0.5])
    np.testing.assert_array_equal(apply(native.erf, special, lanes), [nan, 1, -1, 0, 0])
    large = np.array([88.8, 1e30, -103.9, -104.2, -1e30], np.float32)
    got = apply(native.exp, large, lanes)
    np.testing.assert_array_equal(got[[0, 1, 3, 4]], [inf, inf, 0, 0])
    assert math.isnan(apply(native.log, np.array([-1e-40], np.float32), lanes)[0])


@pytest.mark.parametrize("lanes", LANES)
def test_denormals_are_kept(lanes: int) -> None:
    x = np.linspace(-103.5, -87.5, 301).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    assert np.all(np.abs(apply(native.exp, x, lanes) - want) < 1.5 * 2.0**-149 + want * 2e-7)
    assert np.all(apply(native.exp, x, lanes) > 0)
    y = (np.arange(1, 400) * 2.0**-149).astype(np.float32)
    assert relative_error(apply(native.log, y, lanes), np.log(y.astype(np.float64)), NORMAL) < 2e-7
    tiny = np.array([1e-42, -3e-41], np.float32)
    np.testing.assert_array_equal(apply(native.tanh, tiny, lanes), tiny)


def _together(f: Function, x: Value) -> list[Value]:
    """Three fractions of x with one division: its sigmoid, that of -x, and its hyperbolic tangent."""
    fractions = [
        native.sigmoid_fraction(f, x),
        native.sigmoid_fraction(f, f.neg(x)),
        native.tanh_fraction(f, x),
    ]
    return native.quotients(f, fractions)


@pytest.mark.parametrize("lanes", LANES)
def test_fractions_are_the_functions(lanes: int) -> None:
    x = np.concatenate([sweep(-40, 40), sweep(-1, 1)])
    wide = x.astype(np.float64)
    alone = apply(lambda f, v: native.quotients(f, [native.tanh_fraction(f, v)])[0], x, lanes)
    shared = [apply(lambda f, v, i=i: _together(f, v)[i], x, lanes) for i in range(3)]  # type: ignore[misc]
    pair = apply(lambda f, v: native.quotients(f, [native.sigmoid_fraction(f, v)] * 2)[1], x, lanes)
    for got in (alone, shared[2]):
        assert relative_error(got, np.tanh(wide), NORMAL) < 4e-7
        assert np.all(np.abs(got) <= 1)
    for got, argument in ((shared[0], wide), (shared[1], -wide), (pair, wide)):
        assert np.all((got > 0) & (got <= 1 + 2.0**-22))
        bounded = np.clip(argument, -29, 29)
        assert relative_error(got, 1 / (1 + np.exp(-bounded)), NORMAL) < 5e-7


@pytest.mark.parametrize("lanes", LANES)
def test_fractions_of_special_values(lanes: int) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    sigmoid, _, tanh = (apply(lambda f, v, i=i: _together(f, v)[i], x, lanes) for i in range(3))  # type: ignore[misc]
    np.testing.assert_allclose(sigmoid, [np.nan, 1, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(tanh, [np.nan, 1, -1, 0], rtol=4e-7)

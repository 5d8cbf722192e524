from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.spelling import float_literal
from onward.compile.codegen.target import LANES, Target, host_target
from onward.compile.codegen.values import Value

WIDTHS = [n for n in LANES if n <= host_target().lanes]


@pytest.fixture(params=WIDTHS)
def target(request: pytest.FixtureRequest) -> Target:
    return host_target(request.param)


def run(
    target: Target, write: Callable[[Function, list[Value]], None], *data: npt.NDArray[np.generic] | int
) -> str:
    """Build a kernel whose slots are the data, run it as thread 1 of 3, give its IR."""
    module = Module(target)
    f = module.entry()
    values = [f.load(f.arguments[0], "i64" if isinstance(d, int) else "ptr", i) for i, d in enumerate(data)]
    write(f, values)
    f.ret()
    block = np.array([d if isinstance(d, int) else d.ctypes.data for d in data], np.int64)
    address = Jit(target).address(module.text())
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    call(block.ctypes.data, 1, 3)
    return module.text()


def test_loops_carry_values_and_run_from_no_trips_on(target: Target) -> None:
    for count in (0, 1, 2, 9):
        for known in (True, False):
            out = np.zeros(2, np.int64)

            def write(f: Function, v: list[Value], known: bool = known, count: int = count) -> None:
                stop = count if known else v[1]
                a, b = f.loop(0, stop, 2, [f.value(5), f.value(1)], body=lambda i, c: [c[0] + i, c[1] + c[0]])  # noqa: B023
                f.store(a, v[0], 0)
                f.store(b, v[0], 1)

            run(target, write, out, count)
            want = [5, 1]
            for i in range(0, count, 2):
                want = [want[0] + i, want[1] + want[0]]
            assert out.tolist() == want


def test_nested_ranges_and_conditions(target: Target) -> None:
    out = np.zeros((5, 7), np.int64)

    def write(f: Function, v: list[Value]) -> None:
        with f.range(0, v[1]) as i, f.range(0, 7) as j, f.when(f.compare("slt", i, j)):
            f.store(i * 10 + j, v[0], i * 7 + j)

    text = run(target, write, out, 5)
    want = [[i * 10 + j if i < j else 0 for j in range(7)] for i in range(5)]
    assert out.tolist() == want
    assert text.count("llvm.loop !") == 2


def test_a_long_constant_loop_is_not_unrolled(target: Target) -> None:
    module = Module(target)
    f = module.entry()
    out = f.load(f.arguments[0], "ptr")
    (total,) = f.loop(
        0, 64, carry=[f.zero()], body=lambda i, c: [f.fma(f.vload(out, i * target.lanes), 2.0, c[0])]
    )
    f.vstore(total, out)
    f.ret()
    assembly = Jit(target).assembly(module.text())
    assert assembly.count("\n") < 120


def test_masked_tails_touch_nothing_else(target: Target) -> None:
    lanes = target.lanes
    for count in range(lanes + 2):
        for known in (True, False):
            a, out = np.arange(1, lanes + 1, dtype=np.float32), np.full(lanes, -1, np.float32)

            def write(f: Function, v: list[Value], known: bool = known, count: int = count) -> None:
                mask = f.mask(count if known else v[2])
                f.vstore(f.vload(v[0], 0, mask) * 2.0, v[1], 0, mask)

            run(target, write, a, out, count)
            want = np.where(np.arange(lanes) < count, a * 2, -1)
            np.testing.assert_array_equal(out, want)


def test_reductions_over_lanes(target: Target) -> None:
    a = np.random.default_rng(0).standard_normal(target.lanes).astype(np.float32)
    out = np.zeros(3, np.float32)

    def write(f: Function, v: list[Value]) -> None:
        x = f.vload(v[0])
        f.store(f.reduce(x, lambda a, b: a + b), v[1], 0)
        f.store(f.reduce(x, f.maximum), v[1], 1)
        f.store(f.reduce(x, f.minimum), v[1], 2)

    run(target, write, a, out)
    np.testing.assert_allclose(out, [a.sum(), a.max(), a.min()], rtol=1e-6)
    a[target.lanes // 2] = np.nan
    run(target, write, a, out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_shares_cover_everything_once(total: int, target: Target) -> None:
    module = Module(target)
    f = module.entry()
    args, thread, threads = f.arguments
    low, high = f.share(f.load(args, "i64"), thread, threads)
    out = f.load(args, "ptr", 1)
    f.store(low, out, thread * 2)
    f.store(high, out, thread * 2 + 1)
    f.ret()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        Jit(target).address(module.text())
    )
    for threads_ in (1, 2, 3, 5):
        found = np.zeros((threads_, 2), np.int64)
        block = np.array([total, found.ctypes.data], np.int64)
        for thread_ in range(threads_):
            call(block.ctypes.data, thread_, threads_)
        assert found[0, 0] == 0
        assert found[-1, 1] == total
        assert (found[1:, 0] == found[:-1, 1]).all()
        assert np.ptp(found[:, 1] - found[:, 0]) <= 1


def test_integer_constants_fold_and_floats_are_exact() -> None:
    module = Module(host_target())
    f = module.entry()
    before = len(module.text())
    assert ((f.value(6) * 7 + 0) // 1 % 5).ref == "2"
    assert (f.value(3) * 0 + 4).ref == "4"
    assert len(module.text()) == before
    assert float_literal(1.0) == "0x3FF0000000000000"
    assert float_literal(float("-inf")) == "0xFFF0000000000000"

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.accesses import check_contents, check_declared

from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import LANES, Target, host_target
from onward.compile.kernels.kernel import Kernel

Array = npt.NDArray[np.float32]
Run = Callable[..., None]

THREADS = int(os.environ.get("ONWARD_THREADS", "2"))
"""Of runs that are not about a number of threads."""


@functools.cache
def _jit(target: Target) -> Jit:
    return Jit(target)


def _run(kernel: Kernel, target: Target, values: Mapping[str, Array | int], threads: int = THREADS) -> None:
    """Run a kernel as a team would, one thread after the other; its declared accesses are checked."""
    address = _jit(target).address(kernel.ir)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    scratch = np.full(kernel.scratch * threads // 4 + 16, np.nan, np.float32)
    slots: dict[str, Array | int] = dict(values)
    if kernel.scratch:
        slots["scratch"] = scratch[-scratch.ctypes.data % 64 // 4 :]
    block = kernel.block({k: v if isinstance(v, int) else v.ctypes.data for k, v in slots.items()})

    def once() -> None:
        for thread in range(threads):
            call(block.ctypes.data, thread, threads)

    check_declared(kernel)
    check_contents(kernel, slots, once)


@pytest.fixture
def run() -> Run:
    return _run


@pytest.fixture(params=[n for n in LANES if n <= host_target().lanes])
def target(request: pytest.FixtureRequest) -> Target:
    """The three vector widths."""
    return host_target(request.param)

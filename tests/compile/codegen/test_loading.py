"""Memory for machine code: what it costs, and what happens where there is none."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onward.compile.codegen import loading
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.linking import linkable
from onward.compile.codegen.symbols import ENTRY
from onward.compile.codegen.target import host_target
from onward.errors import LimitError, UnsupportedError

TARGET = host_target()
pytestmark = pytest.mark.skipif(not linkable(TARGET.triple), reason="LLVM's engine loads kernels here")


def kernel(number: int, constants: int = 0) -> str:
    """IR of a function that multiplies by a number, or looks it up in a table of so many constants."""
    if not constants:
        return (
            f"define double @{ENTRY}(double %x) {{\n  %y = fmul double %x, {number}.0\n  ret double %y\n}}\n"
        )
    values = ", ".join(f"double {number}.0" for _ in range(constants))
    return f"""
@table = private unnamed_addr constant [{constants} x double] [{values}], align 64
define double @{ENTRY}(double %x) {{
  %i = fptoui double %x to i64
  %p = getelementptr [{constants} x double], ptr @table, i64 0, i64 %i
  %v = load double, ptr %p
  %y = fmul double %x, %v
  ret double %y
}}
"""


def call(address: int, x: float) -> float:
    return float(ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)(x))


def mappings(*addresses: int) -> list[str]:
    """The rights of the mappings that addresses are in, each once."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if any(start <= address < end for address in addresses):
            found[start] = rights
    return list(found.values())


def test_kernels_share_mappings_that_cannot_be_written() -> None:
    jit = Jit(TARGET)
    addresses = [jit.address(kernel(n)) for n in range(40)]
    found = mappings(*addresses)
    assert set(found) == {"r-xp"}
    assert len(found) <= 2
    together = Jit(TARGET).addresses([kernel(n) for n in range(40)])
    assert max(together) - min(together) == 39 * loading.ALIGNMENT


def test_a_kernel_may_be_larger_than_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_ROOM", 1 << 14)
    monkeypatch.setattr(loading, "_memory", loading._Memory())
    jit = Jit(TARGET)
    texts = [kernel(n, 1 + 1000 * (n % 5)) for n in range(12)]
    assert [call(a, 0.5 * n) for n, a in enumerate(jit.addresses(texts[:6]))] == [
        0.5 * n * n for n in range(6)
    ]
    more = [jit.address(text) for text in texts[6:]]
    assert [call(a, 0.5) for a in more] == [0.5 * n for n in range(6, 12)]


def test_memory_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_memory", loading._Memory())
    jit = Jit(TARGET)
    monkeypatch.setattr(loading, "_map", lambda size: None)
    with pytest.raises(LimitError, match="compiling a kernel needs up to 33,554,432 bytes"):
        jit.address(kernel(50))
    monkeypatch.undo()
    monkeypatch.setattr(loading, "_memory", loading._Memory())
    monkeypatch.setattr(loading, "_ROOM", 1 << 60)  # then a page is enough
    assert call(jit.address(kernel(51)), 1.0) == 51.0
    with pytest.raises(
        LimitError, match=r"machine code of kernels needs .* bytes, which the system does not give"
    ):
        loading._Memory().free(1 << 60)


def test_memory_that_may_not_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        mmap = staticmethod(loading._c_library().mmap)

        @staticmethod
        def mprotect(*_: int) -> int:
            ctypes.set_errno(13)
            return -1

    monkeypatch.setattr(loading, "_memory", loading._Memory())
    jit = Jit(TARGET)
    monkeypatch.setattr(loading, "check_memory", lambda: None)
    monkeypatch.setattr("onward.compile.codegen.jit.check_memory", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_c_library", lambda: Library)
        with pytest.raises(UnsupportedError, match=r"Permission denied.*SELinux"):
            jit.address(kernel(60))
    assert call(jit.address(kernel(60)), 1.0) == 60.0


def test_a_function_that_nobody_has() -> None:
    text = f"declare double @nobody_has_this(double)\ndefine double @{ENTRY}(double %x) {{\n"
    text += "  %y = call double @nobody_has_this(double %x)\n  %z = fadd double %y, 1.0\n  ret double %z\n}\n"
    with pytest.raises(UnsupportedError, match="calls nobody_has_this, which no library"):
        Jit(TARGET).address(text)
    assert loading.address_of("nobody_has_this") is None
    assert loading.address_of("cosf") is not None


def test_threads_load_side_by_side() -> None:
    jits = [Jit(TARGET) for _ in range(3)]
    wrong: list[int] = []

    def work(thread: int) -> None:
        for n in range(60):
            number = 60 * thread + n
            if call(jits[thread % 3].address(kernel(number, 1 + n % 3)), 0.5) != 0.5 * number:
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


PATH = """
import ctypes, mmap, os, resource, sys
sys.path[:0] = os.environ["TESTED"].split(os.pathsep)
"""
LIMIT = """
def limit(allowed):
    "Let the process have some more addresses than it uses; gives the old limit."
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(status["VmSize"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + allowed, old[1]))
    return old
"""
PRELUDE = """
from tests.compile.codegen.test_loading import TARGET, call, kernel
from onward.compile.codegen.jit import Jit
"""


def run(program: str) -> str:
    environment = {**os.environ, "TESTED": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PATH + program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


def test_a_process_whose_memory_is_limited_gets_an_error_and_goes_on() -> None:
    program = (
        PRELUDE
        + LIMIT
        + """
from onward.errors import LimitError
jit = Jit(TARGET)
jit.address(kernel(1))
large = kernel(2, 2000)
for allowed in (1 << 20, 20 << 20):
    old = limit(allowed)
    try:
        jit.address(large)
    except LimitError as error:
        print("ulimit" in str(error))
    resource.setrlimit(resource.RLIMIT_AS, old)
print(call(jit.address(large), 3.0))
"""
    )
    assert run(program).split() == ["True", "True", "6.0"]


def test_a_process_that_cannot_have_llvm_gets_an_error() -> None:
    program = (
        LIMIT
        + """
from onward.compile.codegen.target import host_target
from onward.errors import ConfigError
limit(40 << 20)
try:
    host_target()
except ConfigError as error:
    print(error)
"""
    )
    assert "llvmlite" in run(program)


def test_numba_is_not_asked_to_compile_without_memory(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "small.py").write_text("def twice(thread, threads, y):\n    y[0] = 2.0 * y[0]\n")
    program = (
        PRELUDE
        + LIMIT
        + f"""
sys.path.insert(0, {str(tmp_path)!r})
os.environ["ONWARD_CACHE_DIR"] = {str(tmp_path / "cache")!r}
import small
from onward.compile.kernels.loop import Operand, loop
from onward.errors import LimitError
limit(80 << 20)
try:
    loop(small.twice, (Operand("y", "output", "float64", 1),), (), TARGET)
except LimitError as error:
    print("numba" in sys.modules, error)
"""
    )
    assert run(program).startswith("False compiling a kernel needs up to")


def test_a_child_loads_while_its_parents_thread_does() -> None:
    program = (
        PRELUDE
        + """
import threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import tempfile
from onward.compile.disk import DiskCache
from onward.compile.codegen import loading
folder = tempfile.TemporaryDirectory()
Jit(TARGET, DiskCache(Path(folder.name))).addresses([kernel(n) for n in range(8)])
jit = Jit(TARGET, DiskCache(Path(folder.name)))
address = jit.address(kernel(0))
held = threading.Event()
def hold():
    with jit._lock, loading._memory.lock:
        held.set()
        threading.Event().wait(60)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    os._exit([call(jit.address(kernel(n)), 1.0) for n in range(8)] != list(range(8)))
print(os.waitpid(child, 0)[1], call(address, 1.0))
"""
    )
    assert run(program).split() == ["0", "0.0"]


FRAGMENTED = (
    PRELUDE
    + """
import math, threading
threading.stack_size(64 << 20)  # that of the first thread grows into what will be occupied
def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000 | 0x100000  # no memory behind it, nothing replaced

def occupy(hole, apart):
    "Leave, of all addresses that are free, single pages and holes of a size by turns, far apart."
    spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in open("/proc/self/maps")]
    top = 1 << 47
    ends = [[0, 1 << 20], *(span for span in spans if span[1] < top), [top - 4096, top]]
    left = 4096, hole
    for (_, start), (end, _) in zip(ends, ends[1:]):
        while end - start > left[0]:
            low = max(start, end - left[0] - apart)
            if libc.mmap(low, end - left[0] - low, 0, RESERVED, -1, 0) != low:
                raise SystemExit("the address space could not be filled")
            end, left = low, left[::-1]
"""
)


def test_code_and_constants_are_in_reach_where_addresses_are_scarce() -> None:
    program = (
        FRAGMENTED
        + """
def main():
    jit = Jit(TARGET)
    occupy(33 << 20, 3 << 30)
    for n in range(20):
        address = jit.address(kernel(n, 20_000 + n))
        assert call(address, 2.0) == 2.0 * n, n
    calling = ("ret double %y", "%z = call double @cos(double %y)\\n  ret double %z")
    texts = [kernel(n, 500).replace(*calling) + "declare double @cos(double)\\n" for n in range(50)]
    codes = [jit._built(jit.key(text), text) for text in texts]
    for _ in range(100):
        for n, code in enumerate(codes):
            (address,) = jit._loader.load({f"k{jit.key(texts[n])}": code}).values()
            assert call(address, 2.0) == math.cos(2.0 * n), n
    print("loaded")

in_thread(main)
"""
    )
    assert run(program) == "loaded\n"


@pytest.mark.slow
def test_numba_compiles_where_addresses_are_scarce(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "scarce.py").write_text(
        "import numpy as np\n"
        "def first(thread, threads, y, x):\n"
        "    for i in range(thread, x.shape[0], threads):\n"
        "        y[i] = np.tanh(x[i]) ** 3.5\n"
        "def second(thread, threads, y, x):\n"
        "    for i in range(thread, x.shape[0], threads):\n"
        "        y[i] = np.cos(x[i]) + np.arctan2(x[i], 2.0)\n"
    )
    program = (
        FRAGMENTED
        + f"""
sys.path.insert(0, {str(tmp_path)!r})
os.environ["ONWARD_CACHE_DIR"] = {str(tmp_path / "cache")!r}
import numpy as np
import scarce
from onward.compile.kernels.loop import Operand, loop
operands = (Operand("y", "output", "float64", 1), Operand("x", "operand", "float64", 1))
loop(scarce.first, operands, (), TARGET)

def main():
    occupy(33 << 20, 3 << 30)
    for function in (scarce.first, scarce.second):
        made = loop(function, operands, (), TARGET)
        x, y = np.linspace(0.1, 3, 50), np.zeros(50)
        status = np.zeros(1, np.int64)
        values = {{"y": y.ctypes.data, "x": x.ctypes.data, "status": status.ctypes.data}}
        slots = np.array([values.get(slot.name, 50) for slot in made.parameters])
        entry = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(Jit(TARGET).address(made.ir))
        entry(slots.ctypes.data, 0, 1)
        expected = np.zeros(50)
        function(0, 1, expected, x)
        print(np.abs(y - expected).max() < 1e-14)

in_thread(main)
"""
    )
    assert run(program).split() == ["True", "True"]

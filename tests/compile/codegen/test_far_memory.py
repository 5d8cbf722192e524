"""Machine code and its constants stay within reach of each other where the address space is in pieces."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = '''
import ctypes

from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.symbols import ENTRY

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
RESERVED = 0x2 | 0x20 | 0x4000 | 0x100000  # private, anonymous, no memory behind it, nothing replaced


def occupy(address):
    """Leave one page of what is free within 4 GB of an address: code fits in, its constants do not."""
    spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in open("/proc/self/maps")]
    filled = []
    for (_, start), (end, _) in zip(spans, spans[1:]):
        start, end = max(start, address - (4 << 30)), min(end, address + (4 << 30))
        if end > start and libc.mmap(start, end - start, 0, RESERVED, -1, 0) == start:
            filled.append(start)
    libc.munmap(ctypes.c_void_p(min(filled, key=lambda start: abs(start - address))), 4096)


for n in range(10):
    size = 2048 + n
    values = ", ".join(f"double {k}.5" for k in range(size))
    (address,) = default_jit().addresses((f"""
@table = private unnamed_addr constant [{size} x double] [{values}], align 64
define double @{ENTRY}(i64 %i) {{
  %p = getelementptr [{size} x double], ptr @table, i64 0, i64 %i
  %v = load double, ptr %p
  ret double %v
}}
""",))
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(address)(3 + n) == 3.5 + n
    occupy(address)
print("loaded")
'''


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64",
    reason="maps memory as Linux on x86-64 does",
)
def test_constants_are_within_reach_of_code() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "loaded\n"

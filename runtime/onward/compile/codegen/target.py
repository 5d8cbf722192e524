"""The machine that kernels are generated for: vectors, registers, caches, CPU features, cache keys."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from onward.compile.codegen.tuning import Caches, Tuning, tuning_for
from onward.compile.codegen.types import INTEGER_TYPES, ElementType, element_type
from onward.errors import ConfigError
from onward.processors import usable_cores

__all__ = [
    "GENERATOR_VERSION",
    "LANES",
    "Target",
    "has_byte_dots",
    "host_caches",
    "host_cores",
    "host_target",
]

GENERATOR_VERSION = 1
"""Raised whenever the meaning of generated code or of the argument block changes."""

LANES = (16, 8, 4)
"""Float32 lanes a vector can have: AVX-512, AVX2 with FMA, and the portable form (SSE, NEON)."""

_X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Target:
    """A CPU as the kernel generator sees it, through the elements of one type.

    Attributes:
        triple, cpu, features: what LLVM compiles for.
        vector_bytes: of a vector register.
        registers: the number of vector registers.
        memory_broadcast: whether a multiply-add takes a broadcast scalar straight from memory (it then needs
            no register).
        fused: whether multiply-add is one instruction.
        caches: sizes of a core's data caches.
        cores: that this process may use.
        tuning: how kernels are cut.
        dtype: the stored type of the elements that kernels are about.
    """

    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    memory_broadcast: bool
    fused: bool
    llvmlite: str
    caches: Caches
    cores: int
    tuning: Tuning
    dtype: str = "float32"

    def typed(self, dtype: str) -> Target:
        """The same machine for elements of another type.

        Raises:
            UnsupportedError: there are no kernels for it.
        """
        if dtype == self.dtype:
            return self
        element_type(dtype)
        return replace(self, dtype=dtype)

    def integral(self, dtype: str) -> Target:
        """The same machine for element-wise passes in integers of a type."""
        return replace(self, dtype=INTEGER_TYPES[dtype].storage)

    @property
    def converts_halves(self) -> bool:
        """Whether the processor converts float16."""
        known = self.cpu == "x86-64-v3" or self.triple.startswith(("aarch64", "arm64"))
        return known or "+f16c" in self.features.split(",")

    @functools.cached_property
    def element(self) -> ElementType:
        """How the elements are stored and computed with."""
        return INTEGER_TYPES.get(self.dtype) or element_type(self.dtype)

    @functools.cached_property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.vector_bytes // self.element.compute_nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of an element."""
        return self.element.nbytes

    @property
    def line(self) -> int:
        """Elements of a cache line."""
        return self.caches.line // self.nbytes

    @property
    def x86(self) -> bool:
        """Whether x86 intrinsics may be used."""
        return self.triple.split("-", 1)[0] in _X86

    @functools.cached_property
    def key(self) -> str:
        """Hex digest of everything that changes the machine code made from the same IR."""
        float_lanes = self.vector_bytes // 4
        parts = (GENERATOR_VERSION, self.llvmlite, self.triple, self.cpu, self.features, float_lanes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    @functools.cached_property
    def plan_key(self) -> str:
        """Hex digest of everything here that changes the IR made from the same model."""
        parts = (self.key, self.registers, self.memory_broadcast, self.fused, self.caches, self.tuning)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def host_cores() -> int:
    """How many cores this process may use; `ONWARD_THREADS` is as many threads as teams have by default.

    Raises:
        ConfigError: the variable is not a number of 1 or more.
    """
    if text := os.environ.get("ONWARD_THREADS", ""):
        if not text.isdigit() or int(text) < 1:
            raise ConfigError(f"ONWARD_THREADS={text}: give a whole number of 1 or more, or leave it unset")
        return int(text)
    return usable_cores()


_CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
_SYSCONF = {"l1": 188, "l2": 191, "l3": 194}
"""Glibc's _SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE and _SC_LEVEL3_CACHE_SIZE, for which Python has
no names."""


def host_caches(folder: Path = _CACHE_FOLDER) -> Caches:
    """The data caches as Linux describes them, else as the C library does; what neither knows is assumed.

    A cache of the first or second level that several cores share counts by its part for each. Assumed are
    32 KiB, 1 MiB, 8 MiB and lines of 64 bytes.
    """
    found = _described(folder)
    for name, key in _SYSCONF.items():
        if name not in found and platform.libc_ver()[0] == "glibc":
            with contextlib.suppress(OSError, ValueError):
                found[name] = os.sysconf(key)
    return replace(Caches(), **{name: size for name, size in found.items() if size > 0})


def _described(folder: Path) -> dict[str, int]:
    """Sizes from files such as index0/size; nothing for what is not there or not understood."""
    found: dict[str, int] = {}
    threads = 1
    for index in sorted(folder.glob("index*")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level = int((index / "level").read_text())
            text = (index / "size").read_text().strip()
            size = int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]]
            sharing = _listed((index / "shared_cpu_list").read_text())
            if level == 1:  # those that share the first level are one core's
                threads = sharing
            found[f"l{level}"] = size // max(1, sharing // threads) if level < 3 else size
            found["line"] = int((index / "coherency_line_size").read_text())
    return {name: size for name, size in found.items() if name in ("l1", "l2", "l3", "line")}


def _listed(text: str) -> int:
    """How many numbers a list such as 0-3,8 has."""
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _tuning_seed() -> int | None:
    """`ONWARD_TUNING_SEED`: moves every blocking, so that tests see what another machine would run."""
    text = os.environ.get("ONWARD_TUNING_SEED", "")
    if not text:
        return None
    if not text.isdigit():
        raise ConfigError(f"ONWARD_TUNING_SEED={text}: give a whole number, or leave it unset")
    return int(text)


def _forced_lanes() -> int | None:
    """`ONWARD_LANES`: the vector width where none is asked for."""
    text = os.environ.get("ONWARD_LANES", "")
    if not text:
        return None
    if text not in map(str, LANES):
        raise ConfigError(f"ONWARD_LANES={text}: choose one of {', '.join(map(str, LANES))}")
    return int(text)


@functools.cache
def host_target(lanes: int | None = None) -> Target:
    """The target for this machine.

    `lanes` forces a vector width, in float32; a width below the machine's best is compiled for a CPU model
    that has no more than that width (x86-64-v3 for 8, x86-64-v2 for 4), so that what narrower machines run is
    what is tested here.

    Raises:
        ConfigError: the machine cannot run the width, or LLVM cannot be loaded.
    """
    try:
        import llvmlite
        from llvmlite import binding
    except OSError as error:
        raise ConfigError(
            "the library of llvmlite, which compiles kernels, cannot be loaded: raise the process's limit on "
            "memory (ulimit -v), install llvmlite again, or choose the engine interpreter"
        ) from error

    name = binding.get_host_cpu_name()
    features = binding.get_host_cpu_features()
    triple = binding.get_process_triple()
    x86 = platform.machine().lower() in _X86
    if x86:
        best = (
            16
            if all(features.get(f) for f in ("avx512f", "avx512vl", "avx512dq", "avx512bw"))
            else 8
            if features.get("avx2") and features.get("fma")
            else 4
        )
    else:
        best = 4
    if lanes is None:
        lanes = _forced_lanes() or best
    if lanes not in LANES or lanes > best:
        usable = ", ".join(str(n) for n in LANES if n <= best)
        raise ConfigError(f"{lanes} vector lanes on {name} ({sys.platform}): choose one of {usable}")
    neon = platform.machine().lower() in ("aarch64", "arm64")
    if lanes == best:
        cpu, flags = name, features.flatten()
    else:
        cpu, flags = ("x86-64-v3" if lanes == 8 else "x86-64-v2"), ""
    caches = host_caches()
    return Target(
        triple=triple,
        cpu=cpu,
        features=flags,
        vector_bytes=4 * lanes,
        registers=32 if lanes == 16 or neon else 16,
        memory_broadcast=lanes == 16,
        fused=lanes >= 8 or neon,
        llvmlite=llvmlite.__version__,
        caches=caches,
        cores=host_cores(),
        tuning=tuning_for(caches, _tuning_seed()),
    )


def has_byte_dots(target: Target) -> bool:
    """Whether the machine multiplies and adds up bytes in vectors of 64."""
    return target.x86 and target.lanes == 16 and "+avx512vnni" in target.features.split(",")

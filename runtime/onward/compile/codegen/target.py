"""The machine that kernels are generated for: vector width, registers, CPU features, cache key."""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from dataclasses import dataclass

from onward.errors import ConfigError

__all__ = ["GENERATOR_VERSION", "LANES", "Target", "host_target"]

GENERATOR_VERSION = 1
"""Raised whenever the meaning of generated code or of the argument block changes."""

LANES = (16, 8, 4)
"""Float32 lanes a vector can have: AVX-512, AVX2 with FMA, and the portable form (SSE, NEON)."""

_X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Target:
    """A CPU as the kernel generator sees it.

    `lanes` is the number of float32 lanes of a vector, `registers` the number of vector registers,
    `memory_broadcast` whether a multiply-add takes a broadcast scalar straight from memory (it then needs
    no register), `fused` whether multiply-add is one instruction.
    """

    triple: str
    cpu: str
    features: str
    lanes: int
    registers: int
    memory_broadcast: bool
    fused: bool
    llvmlite: str

    @property
    def x86(self) -> bool:
        """Whether x86 intrinsics may be used."""
        return self.triple.split("-", 1)[0] in _X86

    @functools.cached_property
    def key(self) -> str:
        """Hex digest of everything that changes the machine code made from the same IR."""
        parts = (GENERATOR_VERSION, self.llvmlite, self.triple, self.cpu, self.features, self.lanes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@functools.cache
def host_target(lanes: int | None = None) -> Target:
    """The target for this machine.

    `lanes` forces a vector width; a width below the machine's best is compiled for a CPU model that has no
    more than that width (x86-64-v3 for 8, x86-64-v2 for 4), so that what narrower machines run is what is
    tested here. Raises `ConfigError` when the machine cannot run the width.
    """
    import llvmlite
    from llvmlite import binding

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
        lanes = best
    if lanes not in LANES or lanes > best:
        usable = ", ".join(str(n) for n in LANES if n <= best)
        raise ConfigError(f"{lanes} vector lanes on {name} ({sys.platform}): choose one of {usable}")
    neon = platform.machine().lower() in ("aarch64", "arm64")
    if lanes == best:
        cpu, flags = name, features.flatten()
    else:
        cpu, flags = ("x86-64-v3" if lanes == 8 else "x86-64-v2"), ""
    return Target(
        triple=triple,
        cpu=cpu,
        features=flags,
        lanes=lanes,
        registers=32 if lanes == 16 or neon else 16,
        memory_broadcast=lanes == 16,
        fused=lanes >= 8 or neon,
        llvmlite=llvmlite.__version__,
    )

"""From IR text to the address of machine code, through a memory and a disk cache.

An entry's name in the disk cache is the hash of the IR and of the target; its contents are what the loader
takes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from onward.compile.codegen.linking import linkable
from onward.compile.codegen.loading import EngineLoader, ImageLoader, Loader, check_memory
from onward.compile.codegen.symbols import ENTRY
from onward.compile.codegen.target import Target, host_target
from onward.compile.disk import DiskCache, cache_folder

__all__ = ["Jit", "default_jit", "kernel_key", "optimised_module"]

_FORM = "image 1"
"""Of what is kept on disk: to be changed where it does."""


def kernel_key(target: Target, ir: str) -> str:
    """The content address of a kernel's machine code: 64 hex digits."""
    return hashlib.sha256(f"{target.key}\n{_FORM}\n{ir}".encode()).hexdigest()


class Jit:
    """Compiles kernels for one target and keeps their machine code for the life of the process.

    Safe to use from several threads. `cache=None` keeps nothing on disk. `compiled` and `loaded` count the
    kernels that were built and those that came from the disk.
    """

    def __init__(self, target: Target, cache: DiskCache | None = None) -> None:
        self.target = target
        self.cache = cache
        self.compiled = 0
        self.loaded = 0
        self._lock = threading.RLock()
        self._addresses: dict[str, int] = {}
        _jits.add(self)

    def key(self, ir: str) -> str:
        """The content address of a kernel: 64 hex digits."""
        return kernel_key(self.target, ir)

    def address(self, ir: str) -> int:
        """The address of the entry function of a module of IR text."""
        return self.addresses((ir,))[0]

    def addresses(self, irs: Sequence[str]) -> list[int]:
        """Addresses of the entry functions of many modules, made ready together."""
        keys = [self.key(ir) for ir in irs]
        with self._lock:
            fresh: dict[str, bytes] = {}
            for key, ir in zip(keys, irs, strict=True):
                if key not in self._addresses and key not in fresh:
                    fresh[key] = self._stored(key) or self._built(key, ir)
            self._load(fresh)
            return [self._addresses[key] for key in keys]

    def known(self, keys: Sequence[str]) -> list[int] | None:
        """Addresses of kernels by content address; None when the machine code of one is not kept."""
        with self._lock:
            fresh: dict[str, bytes] = {}
            for key in keys:
                if key not in self._addresses and key not in fresh:
                    if (code := self._stored(key)) is None:
                        return None
                    fresh[key] = code
            self._load(fresh)
            return [self._addresses[key] for key in keys]

    def assembly(self, ir: str) -> str:
        """The machine code of a module as assembly text, for people."""
        with self._lock:
            return str(self._machine.emit_assembly(self._optimised(ir)))

    def _stored(self, key: str) -> bytes | None:
        code = self.cache.get(key) if self.cache is not None else None
        if code is None or f"k{key}".encode() not in code:  # the second: under another kernel's name
            return None
        self.loaded += 1
        return code

    def _built(self, key: str, ir: str) -> bytes:
        check_memory()
        name = f"k{key}"
        code = bytes(self._machine.emit_object(self._optimised(ir.replace(ENTRY, name))))
        code = self._loader.linked(code, name)
        self.compiled += 1
        if self.cache is not None:
            self.cache.put(key, code)
        return code

    def _load(self, codes: Mapping[str, bytes]) -> None:
        if codes:
            addresses = self._loader.load({f"k{key}": code for key, code in codes.items()})
            self._addresses.update((key, addresses[f"k{key}"]) for key in codes)

    @functools.cached_property
    def _loader(self) -> Loader:
        return ImageLoader() if linkable(self.target.triple) else EngineLoader(_machine(self.target))

    @functools.cached_property
    def _machine(self) -> Any:
        return _machine(self.target)

    def _optimised(self, ir: str) -> Any:
        from llvmlite import binding

        module = binding.parse_assembly(ir)
        module.triple = self.target.triple
        module.data_layout = str(self._machine.target_data)
        # Generators write vectors, unrolling and loop order themselves: passes beyond cleaning up double the
        # time to compile and change nothing.
        passes = binding.create_new_module_pass_manager()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_dead_code_elimination_pass()
        options = binding.create_pipeline_tuning_options(speed_level=1)
        passes.run(module, binding.create_pass_builder(self._machine, options))
        return module


_jits: weakref.WeakSet[Jit] = weakref.WeakSet()


def _after_fork() -> None:
    # A lock that another thread held at the time of the fork would stay locked in the child for ever.
    for jit in _jits:
        jit._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _initialise() -> None:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise AssertionError("kernels use 64-bit argument slots")


def _machine(target: Target) -> Any:
    from llvmlite import binding

    _initialise()
    # Small: what a kernel has of code and constants lies side by side, and is reached relative to itself.
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", jit=True
    )


def optimised_module(ir: str, target: Target) -> str:
    """A module by another compiler as a kernel's IR: optimised to the full, all but the entry local to it."""
    from llvmlite import binding

    _initialise()
    narrow = "+avx512f" in target.features
    machine = _machine(dataclasses.replace(target, cpu=_NARROW, features="") if narrow else target)
    module = binding.parse_assembly(ir)
    module.triple = target.triple
    module.data_layout = str(machine.target_data)

    def localise() -> None:
        things = [*module.functions, *module.global_variables]
        for number, thing in enumerate(t for t in things if t.name != ENTRY and not t.is_declaration):
            thing.linkage = "internal"
            thing.name = f"{ENTRY}_{number}"

    localise()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, builder)
    if not narrow:
        return str(module)
    return _DEFINED.sub(rf'\1"target-cpu"="{_NARROW}" "target-features"="" {{', str(module))


_NARROW = "x86-64-v3"
"""What other compilers' IR is compiled for where there is AVX-512, for which LLVM gives wrong code of some of
it: of the loop of RoiAlign with mode max, which a test runs."""

_DEFINED = re.compile(r"^(define .*)\{$", re.M)


@functools.cache
def default_jit(lanes: int | None = None) -> Jit:
    """The process's JIT for a vector width (the machine's best by default), with the user's disk cache."""
    return Jit(host_target(lanes), DiskCache(cache_folder("kernels")))

"""From IR text to the address of machine code, through a memory and a disk cache.

An entry of the disk cache is one file: a line with the SHA-256 of the rest, then the object code. Its name is
the hash of the IR and of the target, so an entry never goes stale; it can only be damaged, which the checksum
finds, or crowded out, oldest use first. Writing goes through a temporary file and a rename, so processes may
share a folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onward.compile.codegen.builder import ENTRY
from onward.compile.codegen.target import Target, host_target

__all__ = ["DiskCache", "Jit", "default_jit"]

_TEMPORARY = ".tmp-"
_engines: list[Any] = []  # addresses are handed out as plain numbers, so code is never freed


class DiskCache:
    """Object code by content hash in one folder; every failure of the file system reads as a miss.

    `folder` is made with mode 0700 when absent. A folder that another user could write to is not used: its
    files are executed. `limit` bounds the folder's size in bytes; `entries` counts are not bounded.
    """

    def __init__(self, folder: Path, limit: int = 256 << 20) -> None:
        self.folder = folder
        self.limit = limit
        self._written = 0
        self._lock = threading.Lock()
        self._usable = _private(folder)

    @property
    def usable(self) -> bool:
        """Whether the folder can be written and is this user's alone."""
        return self._usable

    def get(self, key: str) -> bytes | None:
        """The object code, or None when absent or damaged; a damaged entry is removed."""
        if not self._usable:
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, _, payload = data.partition(b"\n")
        if digest != hashlib.sha256(payload).hexdigest().encode():
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Store object code; evicts the least recently used entries when the folder passes its limit."""
        if not self._usable:
            return
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with temporary.open("xb") as f:
                f.write(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        with self._lock:
            first = self._written == 0
            self._written += len(payload)
            due = first or self._written > self.limit // 16
            if due:
                self._written = 1
        if due:
            self.evict()

    def evict(self) -> None:
        """Remove the least recently used entries until four fifths of the limit are left."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                info = path.stat()
                found.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in found)
        if total <= self.limit:
            return
        for _, size, path in sorted(found):
            if total <= self.limit * 4 // 5:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]


def _private(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
    except OSError:
        return False
    if os.name == "posix" and (info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _default_folder() -> Path:
    chosen = os.environ.get("ONWARD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onward" / "kernels"


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
        self._machine: Any = None
        self._engine: Any = None

    def key(self, ir: str) -> str:
        """The content address of a kernel: 64 hex digits."""
        return hashlib.sha256(f"{self.target.key}\n{ir}".encode()).hexdigest()

    def address(self, ir: str) -> int:
        """The address of the entry function of a module of IR text."""
        return self.addresses((ir,))[0]

    def addresses(self, irs: Sequence[str]) -> list[int]:
        """Addresses of the entry functions of many modules, made ready together."""
        keys = [self.key(ir) for ir in irs]
        with self._lock:
            fresh: dict[str, str] = {}
            for key, ir in zip(keys, irs, strict=True):
                if key not in self._addresses:
                    fresh.setdefault(key, ir)
            if fresh:
                self._load(fresh)
            return [self._addresses[key] for key in keys]

    def assembly(self, ir: str) -> str:
        """The machine code of a module as assembly text, for people."""
        self._prepare()
        with self._lock:
            return str(self._machine.emit_assembly(self._optimised(ir)))

    def _load(self, fresh: dict[str, str]) -> None:
        from llvmlite import binding

        self._prepare()
        for key, ir in fresh.items():
            code = self.cache.get(key) if self.cache is not None else None
            if code is None:
                code = bytes(self._machine.emit_object(self._optimised(ir.replace(ENTRY, f"k{key}"))))
                self.compiled += 1
                if self.cache is not None:
                    self.cache.put(key, code)
            else:
                self.loaded += 1
            loaded = binding.ObjectFileRef.from_data(code)
            _engines.append((code, loaded))
            self._engine.add_object_file(loaded)
        self._engine.finalize_object()
        for key in fresh:
            self._addresses[key] = int(self._engine.get_function_address(f"k{key}"))

    def _prepare(self) -> None:
        if self._engine is not None:
            return
        from llvmlite import binding

        _initialise()
        self._machine = _machine(self.target)
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine(self.target))
        _engines.append(self._engine)

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


@functools.cache
def _initialise() -> None:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise AssertionError("kernels use 64-bit argument slots")


def _machine(target: Target) -> Any:
    from llvmlite import binding

    # The large code model takes local addresses through GOT offsets, which the loader resolves wrongly.
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", jit=True
    )


@functools.cache
def default_jit(lanes: int | None = None) -> Jit:
    """The process's JIT for a vector width (the machine's best by default), with the user's disk cache.

    The cache is in `$ONWARD_CACHE_DIR`, else `$XDG_CACHE_HOME/onward`, else `~/.cache/onward`.
    """
    return Jit(host_target(lanes), DiskCache(_default_folder()))

"""Machine code in memory: images where they can be made, LLVM's engine elsewhere.

Code is never freed: its addresses are handed out as plain numbers, and threads may be in it to the last.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol, final

from onward.compile.codegen.image import ALIGNMENT, Image
from onward.compile.codegen.linking import link
from onward.errors import LimitError, UnsupportedError

__all__ = ["EngineLoader", "ImageLoader", "Loader", "address_of", "check_memory"]

_ROOM = 1 << 20
"""Bytes taken from the system at once; pages are used when there is something in them."""

_TO_COMPILE = 32 << 20
"""Bytes that LLVM may want for a kernel. It ends the process where it asks for memory and gets none."""

_NOT_GIVEN = (
    "which the system does not give: raise the limit of the process (ulimit -v) or of its container, or use "
    "a smaller model"
)

_LIBRARIES = (None, "libm.so.6", "libgcc_s.so.1")
"""Where functions are looked for that kernels call: what the process has loaded for all, mathematics, and
conversions that some processors do not have."""


class Loader(Protocol):
    """Makes machine code of objects, and has it run. Safe to use from several threads."""

    def linked(self, code: bytes, name: str) -> bytes:
        """What is kept on disk of LLVM's object code, whose entry function has a name."""

    def load(self, codes: Mapping[str, bytes]) -> dict[str, int]:
        """Addresses of entry functions by name, given what `linked` gave.

        Raises:
            LimitError: the system gives no memory for them.
            UnsupportedError: they call a function that the process does not have.
        """


@final
class ImageLoader:
    """Puts images into memory that is written first and can then be run, but never both."""

    def linked(self, code: bytes, name: str) -> bytes:
        return link(code, name).to_bytes()

    def load(self, codes: Mapping[str, bytes]) -> dict[str, int]:
        images = [Image.from_bytes(code) for code in codes.values()]
        others = {symbol: _required(symbol) for image in images for _, symbol, _ in image.others}
        places = []
        size = 0
        for image in images:
            places.append(size)
            size += -(-len(image.block) // ALIGNMENT) * ALIGNMENT
        memory = _memory
        with memory.lock:
            start = memory.free(size)
            for place, image in zip(places, images, strict=True):
                block = image.at(start + place, others)
                ctypes.memmove(start + place, block, len(block))
            memory.make_executable(size)
        return {image.name: start + place + image.entry for place, image in zip(places, images, strict=True)}


@final
class EngineLoader:
    """LLVM's engine, for the platforms whose objects `link` does not know."""

    def __init__(self, machine: Any) -> None:
        from llvmlite import binding

        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._kept: list[Any] = [self._engine]
        _engines.append(self._kept)
        self._lock = threading.Lock()

    def linked(self, code: bytes, name: str) -> bytes:
        return code

    def load(self, codes: Mapping[str, bytes]) -> dict[str, int]:
        from llvmlite import binding

        with self._lock:
            for code in codes.values():
                loaded = binding.ObjectFileRef.from_data(code)
                self._kept.append((code, loaded))
                self._engine.add_object_file(loaded)
            self._engine.finalize_object()
            return {name: int(self._engine.get_function_address(name)) for name in codes}


_engines: list[Any] = []


@final
class _Memory:
    """Memory of the process for code, taken in rooms that fill up page by page. To be used under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._start = 0
        self._end = 0

    def free(self, size: int) -> int:
        """The start of whole pages of this many bytes that can be written."""
        size = _whole_pages(size)
        if self._end - self._start < size:
            # what is left over has never been used, and costs nothing
            room = max(_ROOM, size)
            start = _map(room)
            if start is None:
                room, start = size, _map(size)
            if start is None:
                raise LimitError(f"the machine code of kernels needs {size:,} bytes, {_NOT_GIVEN}")
            self._start, self._end = start, start + room
        return self._start

    def make_executable(self, size: int) -> None:
        """Pages of this many bytes, from the start that `free` gave."""
        size = _whole_pages(size)
        failed = _c_library().mprotect(self._start, size, mmap.PROT_READ | mmap.PROT_EXEC)
        if failed:
            reason = os.strerror(ctypes.get_errno())
            raise UnsupportedError(
                f"the system does not let machine code that was written be run ({reason}), as kernels must: "
                "allow it (execmem of SELinux), or choose the engine interpreter"
            )
        self._start += size


_memory = _Memory()


def _after_fork() -> None:
    # Another thread may have been at work: its lock would stay locked in the child, its room half written.
    global _memory
    _memory = _Memory()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _map(size: int) -> int | None:
    """The address of new memory that can be written; None where the system gives none."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _c_library().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0)
    return None if address == ctypes.c_void_p(-1).value else int(address)


def check_memory(nbytes: int = _TO_COMPILE) -> None:
    """To be called before a compiler, given what it may want.

    Raises:
        LimitError: the system does not have so much.
    """
    if os.name != "posix":
        return
    pieces = [_map(_TO_COMPILE) for _ in range(-(-nbytes // _TO_COMPILE))]
    for piece in pieces:
        if piece is not None:
            _c_library().munmap(piece, _TO_COMPILE)
    if None in pieces:
        raise LimitError(f"compiling a kernel needs up to {nbytes:,} bytes, {_NOT_GIVEN}")


@functools.cache
def _c_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    found = []
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            found.append(ctypes.CDLL(name))
    return tuple(found)


@functools.cache
def address_of(symbol: str) -> int | None:
    """The address of a function that every process has; None: there is none of the name."""
    if os.name != "posix":
        from llvmlite import binding

        return binding.address_of_symbol(symbol)
    for library in _libraries():
        with contextlib.suppress(AttributeError):
            return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    return None


def _required(symbol: str) -> int:
    address = address_of(symbol)
    if address is None:
        raise UnsupportedError(f"a kernel calls {symbol}, which no library of this process has")
    return address

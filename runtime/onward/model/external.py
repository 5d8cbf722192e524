"""External tensor data, read from inside the model's own folder and nowhere else.

Every component of a location is opened relative to the descriptor of its parent and without following
links, the descriptor is checked, and the bytes are read from that same descriptor: no name is looked up
twice, so nothing can be swapped between check and use.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from types import TracebackType
from typing import final

import numpy as np
import onnx

from onward.errors import InvalidModelError, StorageError

__all__ = ["ModelFolder", "read_whole"]

_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_MAPPED = 1 << 16
"""Bytes from which a tensor is mapped: a mapping is at least a page, and processes may have few."""

_RELATIVE = os.open in os.supports_dir_fd


def read_whole(descriptor: int, size: int) -> bytes:
    """The first `size` bytes of a descriptor; fewer when the file is shorter."""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _fill(descriptor: int, view: memoryview, offset: int) -> int:
    os.lseek(descriptor, offset, os.SEEK_SET)
    done = 0
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        while done < len(view):
            got = file.readinto(view[done : done + (1 << 30)])
            if not got:
                break
            done += got
    return done


def _map(descriptor: int, offset: int, needed: int, label: str) -> np.ndarray:
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        block = mmap.mmap(descriptor, needed + offset - start, access=mmap.ACCESS_READ, offset=start)
    except (OSError, ValueError) as error:
        raise StorageError(f"{label} cannot be mapped ({error})") from error
    return np.frombuffer(block, np.uint8, needed, offset - start)


@final
class ModelFolder:
    """The folder of a model file, held open while its external tensors are read.

    Args:
        path: the folder.
        max_bytes: bound on the bytes of all tensors together.
        mapped: whether `read` maps large tensors into memory rather than copies them.

    Raises:
        StorageError: the folder cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, *, mapped: bool = False) -> None:
        self._path = path or "."
        self._mapped = mapped
        self._left = self._max = max_bytes
        self._files: dict[str, int] = {}
        try:
            self.descriptor = os.open(self._path, os.O_RDONLY | _DIRECTORY | _CLOEXEC) if _RELATIVE else -1
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._path}: the folder cannot be opened ({error})") from error

    def __enter__(self) -> ModelFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (*self._files.values(), self.descriptor):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def read(self, tensor: onnx.TensorProto, needed: int, where: str) -> np.ndarray:
        """The bytes of an external tensor: uint8 [needed], new or a read-only part of the mapped file.

        Raises:
            InvalidModelError: the location leaves the folder, is a link, is not a regular file, has other
                hard links, is missing or too short; offset or length are malformed or disagree with the
                tensor; the bound on external bytes is passed.
        """
        label = f"{where} tensor {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        offset = _count(entries.get("offset", "0"), "offset", label)
        length = _count(entries.get("length", str(needed)), "length", label)
        if length != needed:
            raise InvalidModelError(
                f"{label} needs {needed} bytes, but its external data has length {length}"
            )
        if needed > self._left:
            raise InvalidModelError(
                f"{label}: external data of more than {self._max} bytes; raise Limits.max_external_bytes"
            )
        self._left -= needed
        if location not in self._files:
            self._files[location] = self._open(location, label)
        descriptor = self._files[location]
        size = os.fstat(descriptor).st_size
        if offset + needed > size:
            raise InvalidModelError(
                f"{label}: bytes {offset} to {offset + needed} are past the end of {location!r}, {size} bytes"
            )
        if self._mapped and needed >= _MAPPED:
            return _map(descriptor, offset, needed, f"{label}: {location!r}")
        data = np.empty(needed, dtype=np.uint8)
        try:
            done = _fill(descriptor, memoryview(data.data), offset) if needed else 0
        except OSError as error:
            raise StorageError(f"{label}: {location!r} cannot be read ({error.strerror or error})") from error
        if done != needed:
            raise InvalidModelError(f"{label}: {location!r} became shorter while it was read")
        return data

    def _open(self, location: str, label: str) -> int:
        parts = location.split("/")
        absolute = location.startswith("/") or os.path.isabs(location) or ":" in parts[0]
        if not location or absolute or "\\" in location or "\0" in location or {"", ".", ".."} & set(parts):
            raise InvalidModelError(
                f"{label}: external data at {location!r}; a location must be a plain relative path "
                "inside the model's folder"
            )
        try:
            descriptor = self._walk(parts) if _RELATIVE else self._compare(parts)
        except FileNotFoundError:
            raise InvalidModelError(
                f"{label}: external data file {location!r} is missing from {self._path!r}; "
                "put it beside the model"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidModelError(
                f"{label}: external data file {location!r} cannot be used ({reason}); it must be a regular "
                "file inside the model's folder, reached through no link"
            ) from error
        status = os.fstat(descriptor)
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_nlink > 1:
            problem = "has other hard links, which may lead outside the model's folder"
        if problem is not None:
            os.close(descriptor)
            raise InvalidModelError(
                f"{label}: external data file {location!r} {problem}; copy it beside the model"
            )
        return descriptor

    def _walk(self, parts: list[str]) -> int:
        folder = self.descriptor
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | _DIRECTORY | _NOFOLLOW | _CLOEXEC, dir_fd=folder)
                if folder != self.descriptor:
                    os.close(folder)
                folder = inner
            return os.open(parts[-1], os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _CLOEXEC, dir_fd=folder)
        finally:
            if folder != self.descriptor:
                os.close(folder)

    def _compare(self, parts: list[str]) -> int:
        """Where descriptors of folders do not exist: the opened file must be the one `lstat` saw."""
        path = self._path
        for part in parts:
            path = os.path.join(path, part)
            before = os.lstat(path)
            if stat.S_ISLNK(before.st_mode):
                raise ValueError("it is a symbolic link")
        descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
        if not os.path.samestat(before, os.fstat(descriptor)):
            os.close(descriptor)
            raise ValueError("it changed while it was opened")
        return descriptor


def _count(text: str, key: str, label: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidModelError(f"{label}: external data has {key} {text[:40]!r}, which is not a byte count")
    return int(text)

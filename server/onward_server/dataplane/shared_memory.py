"""Regions of POSIX shared memory that clients register, read from and have answers written to.

Source: Triton's system shared memory extension. What a request names is copied at once: a client may change
its region at any time, and what was checked has to be what is computed. It is read and written as a file, not
mapped: a page that the client cuts off would end this process with SIGBUS.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from onward.errors import UnsupportedError
from onward_server.errors import RequestError

__all__ = ["Placement", "RegionStatus", "SharedMemory"]

_FOLDER = "/dev/shm"
_KEY = re.compile(r"/?[A-Za-z0-9._-]{1,255}")
_NAME_BYTES = 256
_MOST_REGIONS = 1024


@final
@dataclass(frozen=True, slots=True)
class Placement:
    """Where in a registered region a tensor lies."""

    region: str
    size: int
    offset: int = 0


@final
@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A registered region: bytes `offset` to `offset + size` of the object `key`."""

    name: str
    key: str
    offset: int
    size: int


@final
class SharedMemory:
    """The registered regions.

    Args:
        enabled: whether there may be any.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._regions: dict[str, tuple[RegionStatus, int]] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Open a region.

        Raises:
            UnsupportedError: shared memory is off.
            RequestError: the name is taken; there is no such object, or it is smaller; bad names and numbers.
        """
        self._check_enabled()
        if not name or len(name.encode("utf-8", "replace")) > _NAME_BYTES:
            raise RequestError(f"a region's name has 1 to {_NAME_BYTES} bytes")
        if name in self._regions:
            raise RequestError(f"shared memory region {name!r} is registered already")
        if len(self._regions) >= _MOST_REGIONS:
            raise RequestError(f"{_MOST_REGIONS} regions are registered already")
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise RequestError(f"key {key[:64]!r} is no name of a shared memory object")
        if offset < 0 or size < 1:
            raise RequestError("give an offset of at least 0 and a byte_size of at least 1")
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(os.path.join(_FOLDER, key.lstrip("/")), flags)
        except OSError as error:
            raise RequestError(f"shared memory object {key!r} cannot be opened: {error.strerror}") from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise RequestError(f"{key!r} is no shared memory object")
            if offset + size > found.st_size:
                raise RequestError(
                    f"bytes {offset} to {offset + size} are not in {key!r}, which has {found.st_size}"
                )
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = (RegionStatus(name, key, offset, size), descriptor)

    def unregister(self, name: str) -> None:
        """Forget a region, or all with an empty name; one that is not known is forgotten already.

        Raises:
            UnsupportedError: shared memory is off.
        """
        self._check_enabled()
        for region in [name] if name else list(self._regions):
            if region in self._regions:
                os.close(self._regions.pop(region)[1])

    def close(self) -> None:
        """Forget all regions."""
        for _, descriptor in self._regions.values():
            os.close(descriptor)
        self._regions.clear()

    def status(self, name: str = "") -> Mapping[str, RegionStatus]:
        """A region, or all with an empty name.

        Raises:
            UnsupportedError: shared memory is off.
            RequestError: no region has this name.
        """
        self._check_enabled()
        if name:
            return {name: self._found(name)[0]}
        return {key: status for key, (status, _) in self._regions.items()}

    def read(self, where: str, placement: Placement) -> bytes:
        """A copy of a tensor's bytes; `where` names it in errors.

        Raises:
            UnsupportedError: shared memory is off.
            RequestError: the region is not registered, or too small.
        """
        descriptor, start = self._located(where, placement)
        data = os.pread(descriptor, placement.size, start)
        if len(data) != placement.size:
            raise RequestError(f"{where}: the object of region {placement.region!r} has become smaller")
        return data

    def write(self, where: str, placement: Placement, data: bytes) -> Placement:
        """Put a tensor's bytes where they are wanted; what they take up of it. Raises as `read` does."""
        descriptor, start = self._located(where, placement)
        if len(data) > placement.size:
            raise RequestError(
                f"{where} takes {len(data)} bytes; shared_memory_byte_size is {placement.size}"
            )
        if data and os.pread(descriptor, 1, start + len(data) - 1) == b"":
            raise RequestError(f"{where}: the object of region {placement.region!r} has become smaller")
        os.pwrite(descriptor, data, start)
        return Placement(placement.region, len(data), placement.offset)

    def check(self, where: str, placement: Placement) -> None:
        """Refuse a place that does not exist, before anything is computed for it. Raises as `read` does."""
        self._located(where, placement)

    def _located(self, where: str, placement: Placement) -> tuple[int, int]:
        self._check_enabled(where)
        status, descriptor = self._found(placement.region)
        if placement.offset < 0 or placement.size < 0 or placement.offset + placement.size > status.size:
            raise RequestError(
                f"{where}: bytes {placement.offset} to {placement.offset + placement.size} are not in region "
                f"{status.name!r}, which has {status.size}"
            )
        return descriptor, status.offset + placement.offset

    def _found(self, name: str) -> tuple[RegionStatus, int]:
        if name not in self._regions:
            raise RequestError(f"no shared memory region {name[:64]!r} is registered")
        return self._regions[name]

    def _check_enabled(self, where: str = "") -> None:
        if not self._enabled:
            prefix = f"{where}: " if where else ""
            raise UnsupportedError(f"{prefix}shared memory is off on this server (`shared_memory`)")

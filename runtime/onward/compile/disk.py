"""Bytes by content hash in a folder of the disk, shared by processes, bounded in size.

An entry is one file: a line with the SHA-256 of the rest, then the contents. Its name is a hash of everything
that the contents follow from, so an entry never goes stale; it can only be damaged, which the checksum finds,
or crowded out, oldest use first. Writing goes through a temporary file and a rename, so processes may share a
folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import threading
from pathlib import Path

__all__ = ["DiskCache", "cache_folder"]

_TEMPORARY = ".tmp-"


class DiskCache:
    """Contents by hash in one folder; every failure of the file system reads as a miss.

    `folder` is made with mode 0700 when absent. A folder that another user could write to is not used: what
    it holds is executed. `limit` bounds the folder's size in bytes; `entries` counts are not bounded.
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
        """The contents, or None when absent or damaged; a damaged entry is removed."""
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
        """Store contents; evicts the least recently used entries when the folder passes its limit."""
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


def cache_folder(kind: str) -> Path:
    """Where the user's entries of a kind are kept.

    In `$ONWARD_CACHE_DIR`, else `$XDG_CACHE_HOME/onward`, else `~/.cache/onward`.
    """
    chosen = os.environ.get("ONWARD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onward" / kind

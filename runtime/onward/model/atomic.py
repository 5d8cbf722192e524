"""Files that are either wholly the old ones or wholly the new ones."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onward.errors import StorageError

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file so that `path` holds the old content or the new one, never a part.

    The block writes to a temporary file in the same folder. When it ends, the file is flushed to the
    device, renamed onto `path`, and the folder is flushed. When anything raises, the temporary is
    removed and `path` is as it was. A symbolic link at `path` is replaced, not followed; the permission
    bits of a file already there are kept.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        A writable binary file.

    Raises:
        StorageError: the folder or the device refuses (missing folder, no space, no permission), or `path` is
            a folder, a device, a pipe or a socket.
            Exceptions of the block that are not `OSError` pass through unchanged.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        mode = _mode_of(target)
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        )
        descriptor = os.open(temporary, flags, 0o666)
    except (OSError, ValueError) as error:
        raise _refusal(target, error) from error
    try:
        with io.FileIO(descriptor, "wb") as raw:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)
            buffered = io.BufferedWriter(raw, 1 << 20)
            yield buffered
            buffered.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _refusal(target, error) from error
        raise
    try:
        _flush_folder(target.parent)
    except OSError as error:
        raise StorageError(
            f"{target}: written, but its folder could not be flushed ({error.strerror or error}); "
            "a power cut may bring the old file back"
        ) from error


def _mode_of(target: Path) -> int | None:
    """Permission bits of the file that will be replaced; None when there is none."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(0, "it is a folder")
    if stat.S_ISLNK(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is a device, pipe or socket, not a file")
    return stat.S_IMODE(status.st_mode)


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(target: Path, error: OSError | ValueError) -> StorageError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return StorageError(
        f"{target}: cannot be written ({reason}); what was there before is unchanged: "
        "check the folder, its permissions and the free space"
    )

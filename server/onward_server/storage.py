"""What goes wrong with the server's own files: a full disk is told apart from a broken one."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from onward.errors import StorageError
from onward_server.errors import StorageFullError

__all__ = ["is_full", "kept"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that no room is left."""
    while error is not None:
        if isinstance(error, shutil.Error):
            # it holds the texts of the errors of single files
            return any(f"[Errno {code}]" in str(error) for code in _FULL)
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def kept(what: str) -> Iterator[None]:
    """Around reading and writing of files; `what` they are.

    Raises:
        StorageFullError: no room is left.
        StorageError: anything else that a file system or SQLite says.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_full(error):
            raise StorageFullError(f"{what} cannot be written: the server's disk is full") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{what} cannot be written: {reason}") from error

"""A full disk is told apart from whatever else files can do."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

import pytest

from onward.errors import StorageError
from onward_server.errors import StorageFullError
from onward_server.statuses import status_of
from onward_server.storage import is_full, kept
from onward_server.training.store import Job, Store


def _error(code: int) -> OSError:
    return OSError(code, "No room", "/srv/secret/file")


def _from(cause: BaseException) -> StorageError:
    try:
        raise StorageError("model.onnx: cannot be written") from cause
    except StorageError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (_error(errno.ENOSPC), True),
        (_error(errno.EDQUOT), True),
        (_error(errno.EACCES), False),
        (shutil.Error([("a", "b", str(_error(errno.ENOSPC)))]), True),
        (shutil.Error([("a", "b", str(_error(errno.EACCES)))]), False),
        (_from(_error(errno.ENOSPC)), True),
        (_from(_error(errno.EIO)), False),
        (sqlite3.OperationalError("near x: syntax error"), False),
        (ValueError("No space left on device"), False),
    ],
)
def test_only_a_full_disk_is_full(error: BaseException, full: bool) -> None:
    assert is_full(error) is full


def test_a_full_disk_exhausts_a_resource_and_a_broken_one_does_not() -> None:
    with (
        pytest.raises(
            StorageFullError, match="the job's folder cannot be written: the server's disk is full"
        ) as found,
        kept("the job's folder"),
    ):
        raise _error(errno.ENOSPC)
    assert status_of(found.value) == ("RESOURCE_EXHAUSTED", 507)
    with (
        pytest.raises(StorageError, match="the job's folder cannot be written: No room") as other,
        kept("the job's folder"),
    ):
        raise _error(errno.EIO)
    assert status_of(other.value) == ("INTERNAL", 500)


def test_a_store_without_room_keeps_what_it_has(tmp_path: Path) -> None:
    store = Store(tmp_path)
    try:
        store.save(Job("job-1", 1))
        store._base.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageFullError):
            store.save(Job("job-2", 2, title="x" * 100_000))
        assert [job.id for job in store.jobs()] == ["job-1"]
        store._base.execute("PRAGMA max_page_count = 1000000")
        store.save(Job("job-2", 2, title="x" * 100_000))
        assert [job.id for job in store.jobs()] == ["job-1", "job-2"]
    finally:
        store.close()

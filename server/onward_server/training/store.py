"""What is known of jobs and versions, in one SQLite file: what was acknowledged outlives the server."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from onward.errors import ConfigError
from onward_server.storage import kept

__all__ = ["Job", "JobEvent", "JobState", "LineageRecord", "Store"]

JobState: TypeAlias = Literal["queued", "running", "completed", "cancelled", "failed"]

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL, sequence INTEGER NOT NULL, time REAL NOT NULL,
    kind TEXT NOT NULL, fields TEXT NOT NULL,
    PRIMARY KEY (job, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    model TEXT NOT NULL, version INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (model, version)
) WITHOUT ROWID;
"""


@final
@dataclass(frozen=True, slots=True)
class Job:
    """A training job.

    Attributes:
        id: `job-` and its number.
        number: from 1, in the order of their arrival.
        state: what it does.
        title: the client's text.
        reason: why it stopped or failed.
        configuration: the run as TOML.
        parent_model, parent_version: what is trained further; empty, 0: a network of the zoo.
        url, fetched: where the data are fetched from, and where they go in the job's folder; empty: nowhere.
        created, started, ended: seconds since 1970; 0: not yet.
        epoch, epochs, step: how far it is.
        figures: loss and metrics, the latest of each; of a completed job those in the model's metadata.
        resumable: whether there is a checkpoint.
        last_event: number of the last one.
        sha256, data_hash: of the model's file, and of the data.
    """

    id: str
    number: int
    state: JobState = "queued"
    title: str = ""
    reason: str = ""
    configuration: str = ""
    parent_model: str = ""
    parent_version: int = 0
    url: str = ""
    fetched: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    resumable: bool = False
    last_event: int = 0
    sha256: str = ""
    data_hash: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("queued", "running")


@final
@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happened in a job; `fields` are JSON values."""

    sequence: int
    time: float
    kind: str
    fields: dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class LineageRecord:
    """Where a version of a model comes from; `withdrawn` is 0 where it was not rolled back."""

    model: str
    version: int
    job: str
    parent_model: str
    parent_version: int
    data_hash: str
    configuration: str
    metrics: dict[str, float]
    sha256: str
    promoted: float
    withdrawn: float = 0.0
    max_absolute_error: float = 0.0


@final
class Store:
    """One server's file. Used from one thread at a time.

    Args:
        folder: where it is; made where it is not there.

    Raises:
        ConfigError: the folder cannot be written, or another server has it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._base = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.executescript(_TABLES)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError("training.folder: another server uses it; each needs one of its own") from None
        except OSError as error:
            raise ConfigError(f"training.folder {folder}: {error.strerror}") from error
        except sqlite3.Error as error:
            self._lock.close()
            raise ConfigError(f"training.folder: jobs.sqlite: {error}") from error

    def jobs(self) -> list[Job]:
        """All of them, the oldest first."""
        rows = self._base.execute("SELECT content FROM jobs ORDER BY number").fetchall()
        return [Job(**json.loads(content)) for (content,) in rows]

    def save(self, job: Job, events: Iterable[JobEvent] = ()) -> None:
        """Store a job and new events of it, all or nothing.

        Raises:
            StorageError: nothing can be written.
        """
        rows = [(job.id, e.sequence, e.time, e.kind, json.dumps(e.fields)) for e in events]
        with kept("the store of jobs"), self._base:
            self._base.execute(
                "INSERT INTO jobs VALUES (?, ?, ?) "
                "ON CONFLICT (number) DO UPDATE SET content = excluded.content",
                (job.number, job.id, json.dumps(asdict(job))),
            )
            self._base.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)

    def events(self, job: str, after: int, limit: int) -> list[JobEvent]:
        """Events of a job after one, in order."""
        rows = self._base.execute(
            "SELECT sequence, time, kind, fields FROM events WHERE job = ? AND sequence > ? "
            "ORDER BY sequence LIMIT ?",
            (job, after, limit),
        ).fetchall()
        return [JobEvent(s, t, kind, json.loads(fields)) for s, t, kind, fields in rows]

    def forget(self, job: Job) -> None:
        """Drop a job and its events; what came of it stays in the lineage.

        Raises:
            StorageError: nothing can be written.
        """
        with kept("the store of jobs"), self._base:
            self._base.execute("DELETE FROM events WHERE job = ?", (job.id,))
            self._base.execute("DELETE FROM jobs WHERE number = ?", (job.number,))

    def record(self, entry: LineageRecord) -> None:
        """Store where a version comes from, or what became of it.

        Raises:
            StorageError: nothing can be written.
        """
        with kept("the store of versions"), self._base:
            self._base.execute(
                "INSERT OR REPLACE INTO versions VALUES (?, ?, ?)",
                (entry.model, entry.version, json.dumps(asdict(entry))),
            )

    def drop(self, entry: LineageRecord) -> None:
        """Take back a record of a version that did not come to be.

        Raises:
            StorageError: nothing can be written.
        """
        with kept("the store of versions"), self._base:
            self._base.execute(
                "DELETE FROM versions WHERE model = ? AND version = ?", (entry.model, entry.version)
            )

    def lineage(self, model: str) -> list[LineageRecord]:
        """The versions of a model that jobs made, the newest first."""
        rows = self._base.execute(
            "SELECT content FROM versions WHERE model = ? ORDER BY version DESC", (model,)
        ).fetchall()
        return [LineageRecord(**json.loads(content)) for (content,) in rows]

    def withdraw(self, model: str, version: int, time: float) -> None:
        """Note that a version was rolled back; 0 takes it back.

        Raises:
            StorageError: nothing can be written.
        """
        for entry in self.lineage(model):
            if entry.version == version:
                self.record(replace(entry, withdrawn=time))

    def close(self) -> None:
        """Close the file, and let another server have it."""
        self._base.close()
        self._lock.close()

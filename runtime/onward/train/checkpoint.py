"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file written atomically.

The file is an uncompressed .npz: one array an entry, and the entry `meta`, JSON. It holds no pickles.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from onward.errors import StorageError, TrainingError
from onward.graph import Array
from onward.model.atomic import atomic_write

__all__ = ["Checkpoint", "averaged", "read_checkpoint", "write_checkpoint"]

_FORMAT = 2


@final
@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment.

    Attributes:
        state: parameters, optimizer slots and running statistics by name.
        arrays: what metrics and callbacks keep, by a path-like name.
        meta: position, seeds, schedule, history and the identity of the run, as plain data.
    """

    state: Mapping[str, Array]
    arrays: Mapping[str, Array]
    meta: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, Array]:
        """The state, with averages, where there are any, in the place of what they are of."""
        beside = self.meta.get("beside", {})
        return averaged(
            self.state, beside.get("averages", {}), beside.get("averaged"), beside.get("masks", {})
        )


def averaged(
    state: Mapping[str, Array],
    averages: Mapping[str, str],
    count: str | None,
    masks: Mapping[str, str],
) -> dict[str, Array]:
    """A step's state with averages in the place of what they are of.

    Args:
        state: by name.
        averages, count, masks: `averages`, `averaged` and `masks` of the `TrainingStep`.
    """
    found = dict(state)
    if count is None or not state[count] > 0:
        return found
    for name, held in averages.items():
        mask = masks.get(name)
        # an average remembers what was pruned since
        found[name] = (
            state[held] if mask is None else np.where(state[mask] > 0, state[held], state[held].dtype.type(0))
        )
    return found


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the file that was there survives any failure.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    entries = {f"state/{name}": array for name, array in checkpoint.state.items()}
    entries |= {f"extra/{name}": array for name, array in checkpoint.arrays.items()}
    meta = json.dumps({"format": _FORMAT, **checkpoint.meta}, sort_keys=True, allow_nan=True)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in {"meta": np.frombuffer(meta.encode(), np.uint8), **entries}.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # carries no time: equal runs write equal bytes
            with archive.open(entry, "w", force_zip64=True) as target:
                np.lib.format.write_array(
                    target, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        StorageError: the file is missing or cannot be read.
        TrainingError: the file is not a checkpoint, is damaged, or is of a newer format.
    """
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as source:
                    arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(
                        source, allow_pickle=False
                    )
        meta = json.loads(arrays.pop("meta").tobytes())
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError) as error:
        raise TrainingError(f"{path} is not a checkpoint, or it is damaged: {error}") from None
    except OSError as error:
        raise StorageError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise TrainingError(f"{path} is a checkpoint of another format; this version reads format {_FORMAT}")
    return Checkpoint(_below("state/", arrays), _below("extra/", arrays), meta)


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

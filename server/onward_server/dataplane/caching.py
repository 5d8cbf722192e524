"""Answers kept for requests with the same inputs, where the server gives memory and the model wants it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from onward.graph import Array
from onward_protos.tensors import encode_raw
from onward_server.model_settings import Engine

__all__ = ["CachedAnswer", "ResponseCache"]

_OVERHEAD = 512


@final
@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """Outputs, and the engine that they come from."""

    outputs: Mapping[str, Array]
    engine: Engine


@final
class ResponseCache:
    """The answers used last, up to a number of bytes.

    Args:
        size: of all outputs that are kept; 0: nothing is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._answers: OrderedDict[bytes, tuple[CachedAnswer, int]] = OrderedDict()

    def key(self, owner: int, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> bytes:
        """What tells a request from others.

        Args:
            owner: number of the loaded version.
            inputs: arrays by name.
            outputs: names asked for; None: all.
        """
        digest = hashlib.blake2b(digest_size=32)
        digest.update(repr((owner, outputs, [(n, a.dtype.str, a.shape) for n, a in inputs.items()])).encode())
        for array in inputs.values():
            digest.update(encode_raw(array))
        return digest.digest()

    def get(self, key: bytes) -> CachedAnswer | None:
        """The answer kept under `key`, or None."""
        found = self._answers.get(key)
        if found is None:
            return None
        self._answers.move_to_end(key)
        return found[0]

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer; those that were used longest ago make room."""
        arrays = answer.outputs.values()
        size = _OVERHEAD + sum(len(encode_raw(a)) if a.dtype == object else a.nbytes for a in arrays)
        if size > self.size or key in self._answers:
            return
        self._answers[key] = (answer, size)
        self.used += size
        while self.used > self.size:
            _, (_, freed) = self._answers.popitem(last=False)
            self.used -= freed

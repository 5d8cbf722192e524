"""Machine code as one block of bytes that runs wherever it is put.

Code, constants and the addresses of other libraries' functions lie side by side in the block, so that the way
from one of them to another is a constant. Left open are absolute addresses, which have 64 bits and reach
anything; they are written where the block is loaded.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from onward.errors import InvalidModelError

__all__ = ["ALIGNMENT", "Image"]

ALIGNMENT: Final = 64
"""Of an image in memory, in bytes: a line of a cache, and a vector of the widest kind."""


@final
@dataclass(frozen=True)
class Image:
    """A kernel's machine code, whole but for addresses.

    Attributes:
        name: of the entry function.
        entry: its place in the block.
        block: code and constants.
        own: places of 64 bits that get the address of another place of the block: (where, of what).
        others: places of 64 bits that get an address in another library: (where, symbol, added to it).
    """

    name: str
    entry: int
    block: bytes
    own: tuple[tuple[int, int], ...] = ()
    others: tuple[tuple[int, str, int], ...] = ()

    def to_bytes(self) -> bytes:
        """A line of JSON and the block, for the disk."""
        head = {"name": self.name, "entry": self.entry, "own": self.own, "others": self.others}
        return json.dumps(head).encode() + b"\n" + self.block

    @staticmethod
    def from_bytes(data: bytes) -> Image:
        """What `to_bytes` gave.

        Raises:
            InvalidModelError: it is something else.
        """
        head, _, block = data.partition(b"\n")
        try:
            read = json.loads(head)
            own = tuple((int(at), int(of)) for at, of in read["own"])
            others = tuple((int(at), str(symbol), int(added)) for at, symbol, added in read["others"])
            image = Image(str(read["name"]), int(read["entry"]), block, own, others)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidModelError("this is not the machine code of a kernel") from error
        slots = [*(at for at, _ in own), *(at for at, _, _ in others)]
        if min(image.entry, *slots, 0) < 0 or max(image.entry, *(at + 7 for at in slots), 0) >= len(block):
            raise InvalidModelError("the machine code of a kernel names places outside of it")
        return image

    def at(self, address: int, others: Mapping[str, int]) -> bytes:
        """The block as it is at an address, given the addresses of other libraries' symbols."""
        if not self.own and not self.others:
            return self.block
        block = bytearray(self.block)
        for where, of in self.own:
            struct.pack_into("<Q", block, where, address + of)
        for where, symbol, added in self.others:
            struct.pack_into("<Q", block, where, others[symbol] + added)
        return bytes(block)

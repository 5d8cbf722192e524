"""Blocks of headers: decoded with a memory of repeated blocks, encoded without any state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar, final

from hpack import Decoder
from hpack.exceptions import HPACKError

from onward_server.http2.frames import Code, ConnectionFault

__all__ = ["HeaderBlocks", "Headers", "literal"]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
_Head = TypeVar("_Head")
_HARD_LIMIT = 1 << 20
_REMEMBERED = 64


@final
class HeaderBlocks(Generic[_Head]):
    """The header blocks that one connection receives.

    Calls of one client mostly repeat a block of references to the dynamic table, byte by byte. It means the
    same as before as long as that table has not changed, so what was made of it is kept until then.

    Args:
        interpret: makes of a block's headers what is to be kept.
    """

    def __init__(self, interpret: Callable[[Headers], _Head]) -> None:
        self._interpret = interpret
        self._decoder = Decoder(max_header_list_size=_HARD_LIMIT)
        self._known: dict[bytes, _Head] = {}

    def read(self, block: bytes) -> _Head:
        """What a block means. Every block of a connection has to pass here, in order.

        Raises:
            ConnectionFault: it cannot be decoded, after which no later one can.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        entries = self._decoder.header_table.dynamic_entries
        before = (len(entries), entries[0] if entries else None)
        try:
            found: Headers = [(field[0], field[1]) for field in self._decoder.decode(block, raw=True)]
        except (HPACKError, UnicodeDecodeError) as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, type(error).__name__) from None
        head = self._interpret(found)
        entries = self._decoder.header_table.dynamic_entries
        unchanged = len(entries) == before[0] and (not entries or entries[0] is before[1])
        if not unchanged or len(self._known) >= _REMEMBERED:
            self._known.clear()
        if unchanged:
            self._known[block] = head
        return head


def literal(name: str, value: str) -> bytes:
    """A header that enters no table (RFC 7541, section 6.2.2), without Huffman coding."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    return _integer(len(data), 7) + data


def _integer(value: int, prefix: int) -> bytes:
    """RFC 7541, section 5.1."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([value])
    found = bytearray([most])
    value -= most
    while value >= 128:
        found.append(value % 128 + 128)
        value //= 128
    found.append(value)
    return bytes(found)

"""Cut what is never loaded off shared libraries: symbol tables, debugging information, section headers.

    python strip.py FOLDER

A loader reads the segments of an ELF file alone; everything behind the last one can go. It stands in for
binutils' `strip`, which a slim image does not have. Files that are not 64-bit little-endian ELF are left as
they are, as are those whose segments reach to their end.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

__all__ = ["loaded_size", "strip"]

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MAGIC = b"\x7fELF\x02\x01"


def loaded_size(data: bytes) -> int:
    """Bytes from the start of an ELF file to the end of its last segment; 0 for other files."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return 0
    _, _, _, _, _, table, _, _, _, size, count, _, _, _ = _HEADER.unpack_from(data)
    end = table + size * count
    for position in range(table, end, size):
        _, _, offset, _, _, length, _, _ = _SEGMENT.unpack_from(data, position)
        end = max(end, offset + length)
    return end


def strip(path: Path) -> int:
    """Shorten a file; the bytes that were saved."""
    data = path.read_bytes()
    end = loaded_size(data)
    if not 0 < end < len(data):
        return 0
    fields = list(_HEADER.unpack_from(data))
    fields[6], fields[12], fields[13] = 0, 0, 0  # no section headers: offset, count, names
    path.write_bytes(_HEADER.pack(*fields) + data[_HEADER.size : end])
    return len(data) - end


def main() -> None:
    saved = sum(strip(path) for path in sorted(Path(sys.argv[1]).rglob("*.so*")) if path.is_file())
    print(f"{saved / 1e6:.1f} MB of symbols cut off")


if __name__ == "__main__":
    main()

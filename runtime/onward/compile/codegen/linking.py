"""ELF objects that LLVM makes for x86-64, linked to images.

LLVM's own loaders take memory for each section wherever there is some, and end the process where two of them
come to lie more than 2 GB apart. Here sections are put side by side before there are addresses.

Formats: System V ABI, chapter 4 "Object Files", and its AMD64 supplement, section 4.4 "Relocation".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, final

from onward.compile.codegen.image import ALIGNMENT, Image
from onward.errors import LimitError, UnsupportedError

__all__ = ["link", "linkable"]

_REACH: Final = 1 << 30
"""Bytes of an object at the most. Relative addresses have 32 bits, one of them a sign, and the image of an
object, with a jump or a slot of 16 bytes for each relocation of 24, is not twice its size."""

_PROGRAM, _SYMBOLS, _RELOCATIONS = 1, 2, 4
"""SHT_PROGBITS, SHT_SYMTAB and SHT_RELA."""

_WRITABLE, _ALLOCATED, _CODE, _THREAD_LOCAL = 1, 2, 4, 0x400
"""SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR and SHF_TLS."""

_UNDEFINED, _RESERVED = 0, 0xFF00
"""SHN_UNDEF, and the first number that is no section's."""

_ABSOLUTE, _RELATIVE, _CALL, _FAR = 1, 2, 4, 24
"""R_X86_64_64, PC32, PLT32 and PC64."""

_SLOTS = (9, 41, 42)
"""R_X86_64_GOTPCREL, GOTPCRELX and REX_GOTPCRELX: the way to a place that has the symbol's address."""

_JUMP = b"\xff\x25\x02\x00\x00\x00\xcc\xcc" + bytes(8)
"""jmp *2(%rip): goes on where the eight bytes behind it say."""


@final
@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int


@final
@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


def linkable(triple: str) -> bool:
    """Whether `link` takes the objects that LLVM makes for a target: those for Linux on x86-64."""
    return triple.startswith("x86_64-") and "-linux" in triple


def link(code: bytes, name: str) -> Image:
    """The image of an object, which has an entry function of this name.

    Raises:
        UnsupportedError: it has variables, or something else that kernels do not have; says what.
        LimitError: it is larger than relative addresses reach.
    """
    return _Linking(code, name).image()


@final
class _Linking:
    def __init__(self, code: bytes, name: str) -> None:
        self._code = code
        self._name = name
        self._sections = self._read_sections()
        self._starts: dict[int, int] = {}
        """Where sections are in the block."""
        self._block = bytearray()
        self._slots: dict[tuple[str, int], int] = {}
        self._jumps: dict[str, int] = {}
        self._own: list[tuple[int, int]] = []
        self._others: list[tuple[int, str, int]] = []

    def image(self) -> Image:
        for number, section in enumerate(self._sections):
            if _is_loaded(section):
                self._place(number, section)
        if len(self._code) > _REACH:  # more than what is loaded of it, with all slots and jumps
            raise LimitError(f"a kernel of {len(self._code):,} bytes: at most {_REACH:,} can be loaded")
        for section in self._sections:
            if section.kind == _RELOCATIONS and section.info in self._starts:
                self._relocate(self._starts[section.info], section)
        entries = [
            self._starts[symbol.section] + symbol.value
            for table in self._sections
            if table.kind == _SYMBOLS
            for symbol in self._read_symbols(table)
            if symbol.name == self._name and symbol.section in self._starts
        ]
        if len(entries) != 1:
            raise UnsupportedError(f"machine code with {len(entries)} functions {self._name} instead of one")
        return Image(self._name, entries[0], bytes(self._block), tuple(self._own), tuple(self._others))

    def _place(self, number: int, section: _Section) -> None:
        if section.alignment > ALIGNMENT:
            raise UnsupportedError(f"data aligned to {section.alignment} bytes: a kernel's to {ALIGNMENT}")
        self._align(ALIGNMENT if section.flags & _CODE else section.alignment)
        self._starts[number] = len(self._block)
        self._block += self._code[section.offset : section.offset + section.size]

    def _align(self, to: int) -> None:
        self._block += bytes(-len(self._block) % max(1, to))

    def _relocate(self, start: int, section: _Section) -> None:
        symbols = self._read_symbols(self._sections[section.link])
        for offset, info, added in struct.iter_unpack("<QQq", self._bytes(section)):
            self._resolve(start + offset, info & 0xFFFFFFFF, symbols[info >> 32], added)

    def _resolve(self, where: int, kind: int, symbol: _Symbol, added: int) -> None:
        of = self._place_of(symbol)
        if kind == _ABSOLUTE:
            self._write_address(where, symbol, added)
        elif kind in _SLOTS:
            self._write("<i", where, self._slot(symbol) + added - where)
        elif kind == _CALL:
            self._write("<i", where, (self._jump(symbol) if of is None else of) + added - where)
        elif kind in (_RELATIVE, _FAR) and of is not None:
            self._write("<i" if kind == _RELATIVE else "<q", where, of + added - where)
        else:
            raise UnsupportedError(f"a kernel with relocation {kind} of {symbol.name or 'a section'}")

    def _write(self, form: str, where: int, value: int) -> None:
        struct.pack_into(form, self._block, where, value)

    def _write_address(self, where: int, symbol: _Symbol, added: int) -> None:
        of = self._place_of(symbol)
        if of is None:
            self._others.append((where, symbol.name, added))
        else:
            self._own.append((where, of + added))

    def _place_of(self, symbol: _Symbol) -> int | None:
        """In the block; None of another library's."""
        if symbol.section == _UNDEFINED:
            return None
        if symbol.section not in self._starts:
            raise UnsupportedError(f"a kernel with {symbol.name or 'a section'}, which is not loaded")
        return self._starts[symbol.section] + symbol.value

    def _slot(self, symbol: _Symbol) -> int:
        """A place that has the symbol's address."""
        key = (symbol.name, -1) if symbol.section == _UNDEFINED else ("", self._place_of(symbol) or 0)
        if key not in self._slots:
            self._align(8)
            self._slots[key] = len(self._block)
            self._block += bytes(8)
            self._write_address(self._slots[key], symbol, 0)
        return self._slots[key]

    def _jump(self, symbol: _Symbol) -> int:
        """Code in reach that goes on in another library's function."""
        if symbol.name not in self._jumps:
            self._align(len(_JUMP))
            self._jumps[symbol.name] = len(self._block)
            self._block += _JUMP
            self._write_address(len(self._block) - 8, symbol, 0)
        return self._jumps[symbol.name]

    def _bytes(self, section: _Section) -> bytes:
        return self._code[section.offset : section.offset + section.size]

    def _read_sections(self) -> list[_Section]:
        """From the headers of an ELF file of 64 bits, the lowest byte first, for x86-64."""
        head = self._code[:20]
        if head[:6] != b"\x7fELF\x02\x01" or head[16:20] != b"\x01\x00\x3e\x00":
            raise UnsupportedError("machine code that is no relocatable ELF object for x86-64")
        (table,) = struct.unpack_from("<Q", self._code, 40)
        size, count, names = struct.unpack_from("<HHH", self._code, 58)
        heads = [struct.unpack_from("<IIQQQQIIQ", self._code, table + size * n) for n in range(count)]
        at = heads[names][4]
        return [
            _Section(self._text(at + name), kind, flags, offset, size, link, info, alignment)
            for name, kind, flags, _, offset, size, link, info, alignment in heads
        ]

    def _read_symbols(self, table: _Section) -> list[_Symbol]:
        at = self._sections[table.link].offset
        return [
            _Symbol(self._text(at + name), section, value)
            for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", self._bytes(table))
        ]

    def _text(self, at: int) -> str:
        return self._code[at : self._code.index(b"\0", at)].decode()


def _is_loaded(section: _Section) -> bool:
    if not section.flags & _ALLOCATED or not section.size:
        return False
    if section.name == ".eh_frame":  # says how to unwind: kernels raise no exceptions, and call none that do
        return False
    constant = not section.flags & _WRITABLE or section.name.startswith(".data.rel.ro")
    if section.kind != _PROGRAM or section.flags & _THREAD_LOCAL or not constant:
        raise UnsupportedError(f"a kernel with variables of its own, or the like: section {section.name}")
    return True

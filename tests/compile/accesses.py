"""What a kernel's IR does with its slots, whatever the kernel declares."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onward.compile.codegen.symbols import ENTRY
from onward.compile.kernels.kernel import Access, Kernel

__all__ = ["check_contents", "check_declared", "found_accesses"]

_ARGS = -1
"""The origin of addresses in the argument block; others are slot numbers."""

_DEFINE = re.compile(r"define (?:internal )?\S+ @(\w+)\((.*?)\)[^(]*\{\n(.*?)\n\}", re.S)
_NAME = re.compile(r"%[\w.]+")
_GEP = re.compile(r"(%[\w.]+) = getelementptr inbounds (\S+), ptr ([%@][\w.]+), (?:i64 )?(.*)$")
_LOAD = re.compile(r"(%[\w.]+) = load (.+?), ptr ([%@][\w.]+)")
_STORE = re.compile(r"store (.+?) \S+, ptr (%[\w.]+), align")
_MERGE = re.compile(r"(%[\w.]+) = (?:phi ptr|select i1 \S+ ptr|bitcast ptr) ?(.*)$")
_INSERT = re.compile(r"(%[\w.]+) = (?:insertelement|shufflevector) <\d+ x ptr> (.*)$")
_ADDRESS = re.compile(r"\b(?:ptr|load|call|ptrtoint|inttoptr)\b")
_CALL = re.compile(r"(?:(%[\w.]+) = )?call (?:void|<[^>]*>|\w+) @([\w.]+)\((.*)\)$")


@dataclass
class _Body:
    """One function: its parameters and instructions, and the origins that reach each address in it."""

    parameters: list[str]
    lines: list[str]
    origins: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))


def found_accesses(ir: str) -> tuple[set[int], set[int], set[int]]:
    """The slots from whose memory a kernel loads, those to which it stores, and those that are numbers.

    Addresses are followed through arithmetic, phis, selects and calls. A table of slots that is walked at run
    time, a row a step, counts as its first row.
    """
    bodies = {name: _body(parameters, text) for name, parameters, text in _DEFINE.findall(ir)}
    entry = bodies[ENTRY]
    entry.origins["%args"].add(_ARGS)
    offsets: dict[str, int] = {"%args": 0}
    loaded, stored, numbers = set[int](), set[int](), set[int]()
    before = -1
    while before != (before := sum(len(o) for b in bodies.values() for o in b.origins.values())):
        for body in bodies.values():
            for line in body.lines:
                _follow(line, body, bodies, offsets, loaded, stored, numbers)
    return loaded - {_ARGS}, stored, numbers


def _body(parameters: str, text: str) -> _Body:
    lines = [line.strip() for line in text.split("\n") if _ADDRESS.search(line)]
    return _Body([p.split()[-1] for p in parameters.split(", ")], lines)


def _follow(
    line: str,
    body: _Body,
    bodies: dict[str, _Body],
    offsets: dict[str, int],
    loaded: set[int],
    stored: set[int],
    numbers: set[int],
) -> None:
    origins = body.origins
    if found := _GEP.match(line):
        name, type_, base, index = found.groups()
        origins[name] |= origins[base]
        if _ARGS in origins[base]:
            assert type_ in ("i64", "ptr"), line
            offsets[name] = offsets[base] + (int(index) if index.isdigit() else 0)
    elif found := _LOAD.match(line):
        name, type_, base = found.groups()
        if _ARGS in origins[base]:
            assert type_ in ("i64", "ptr"), line
            (origins[name] if type_ == "ptr" else numbers).add(offsets[base])
        else:
            assert type_ != "ptr", f"an address that comes from memory: {line}"
            loaded |= origins[base]
    elif found := _STORE.match(line):
        type_, base = found.groups()
        assert type_ != "ptr", f"an address that goes to memory: {line}"
        stored |= origins[base]
    elif found := _MERGE.match(line) or _INSERT.match(line):
        name, operands = found.groups()
        origins[name] |= _union(origins, operands)
    elif found := _CALL.match(line):
        _, symbol, arguments = found.groups()
        operands = [a.split()[-1] for a in _split(arguments)]
        if symbol in bodies:
            callee = bodies[symbol]
            for parameter, operand in zip(callee.parameters, operands, strict=True):
                if operand in origins:
                    callee.origins[parameter] |= origins[operand]
        elif symbol.startswith(("llvm.masked.load", "llvm.masked.gather")):
            loaded |= origins[operands[0]]
        elif symbol.startswith(("llvm.masked.store", "llvm.masked.scatter")):
            stored |= origins[operands[1]]
        elif not symbol.startswith("llvm.prefetch"):
            assert "ptr %" not in arguments, f"an address goes where it is not followed: {line}"
    else:
        raise AssertionError(f"not understood: {line}")


def _union(origins: dict[str, set[int]], operands: str) -> set[int]:
    return {o for name in _NAME.findall(operands) if name in origins for o in origins[name]}


def _split(arguments: str) -> Iterable[str]:
    """Arguments of a call; commas inside vectors do not count."""
    depth, start = 0, 0
    for i, c in enumerate(arguments):
        if c in "<(":
            depth += 1
        elif c in ">)":
            depth -= 1
        elif c == "," and depth == 0:
            yield arguments[start:i].strip()
            start = i + 1
    if arguments:
        yield arguments[start:].strip()


@functools.lru_cache(4096)
def _cached(ir: str) -> tuple[set[int], set[int], set[int]]:
    return found_accesses(ir)


def check_declared(kernel: Kernel) -> None:
    """A kernel loads from and stores to exactly what it declares.

    What is written may also be loaded from: whether what was there before matters, `check_contents` tells.
    """
    if kernel.foreign:  # the declaration follows from the request; tests of loops look at the contents
        return
    loaded, stored, numbers = _cached(kernel.ir)
    reached = max(loaded | stored | numbers, default=-1) + 1
    first: dict[str, Access] = {}
    for i, parameter in enumerate(kernel.parameters):
        access = parameter.access
        what = f"{kernel.name}: slot {parameter.name}, declared {access.value}"
        row = first.setdefault(parameter.name.split()[0], access)
        if i >= reached and row is not access:
            raise AssertionError(f"{what}: it is {row.value} in the first row of the table")
        if i >= reached and parameter.name.split()[0] != parameter.name:
            continue
        number = i in numbers
        assert number == (access is Access.INTEGER), (
            f"{what}: the IR loads {'a number' * number or 'no number'}"
        )
        if number:
            continue
        assert (i in stored) == (access is not Access.READ), (
            f"{what}: the IR {'stores' if i in stored else 'never stores'} to it"
        )
        assert access is Access.WRITE or i in loaded, f"{what}: the IR never loads from it"


def check_contents(kernel: Kernel, values: Mapping[str, Any], call: Callable[[], None]) -> None:
    """Make a call; what written memory held before matters to it exactly where that is declared.

    The call is made again for each written slot, with other numbers in its memory. Arrays are left as the
    first call has them.
    """
    owners = {name: _owner(x) for name, x in values.items() if isinstance(x, np.ndarray)}
    alone = [p for p in kernel.parameters if p.name in kernel.writes and _alone(p.name, owners)]
    before = {name: x.copy() for name, x in owners.items()}
    call()
    after = {name: x.copy() for name, x in owners.items()}
    for parameter in alone:
        other = _other(before[parameter.name])
        for name, x in owners.items():
            x[...] = other if name == parameter.name else before[name]
        call()
        name = parameter.name
        changed = any(not _same(after[n], owners[n]).all() for n in kernel.writes if n != name)
        if name != "scratch":
            # where nothing is stored, each call leaves what it found
            kept = _same(after[name], before[name]) & _same(owners[name], other)
            if not changed and kept.all():
                continue
            changed |= not (kept | _same(after[name], owners[name])).all()
        assert changed == (parameter.access is Access.UPDATE), (
            f"{kernel.name}: slot {name}, declared {parameter.access.value}: what it holds before a call "
            f"{'changes' if changed else 'does not change'} the results"
        )
    for name, x in owners.items():
        x[...] = after[name]


def _owner(x: Any) -> Any:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _alone(name: str, owners: Mapping[str, Any]) -> bool:
    return all(x is not owners[name] for other, x in owners.items() if other != name)


def _other(x: Any) -> Any:
    """Numbers that differ everywhere, finite where the given ones are."""
    if x.dtype.kind == "f":
        return np.where(np.isfinite(x), np.abs(x) + 1, 1).astype(x.dtype)
    return np.bitwise_xor(x, 1) if x.dtype.kind in "iu" else ~x


def _same(a: Any, b: Any) -> Any:
    return (a == b) | ((a != a) & (b != b))

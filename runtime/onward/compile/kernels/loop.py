"""Python functions as kernels: Numba writes their LLVM IR, which is compiled and kept like any kernel's.

The IR is kept on disk by what it follows from: the function with all that it calls, the types of its operands
and Numba's version. A process that finds it there does not import Numba. Extents are slots, so that one IR
serves all shapes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from onward.compile.codegen.jit import optimised_module
from onward.compile.codegen.loading import address_of, check_memory
from onward.compile.codegen.symbols import ENTRY
from onward.compile.codegen.target import Target
from onward.compile.disk import DiskCache, cache_folder
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, write
from onward.errors import UnsupportedError
from onward.processors import usable_cores

__all__ = ["LOOP_TYPES", "Operand", "available", "extents", "loop"]

LOOP_TYPES = frozenset(
    ("bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
"""The element types of the arrays that functions take."""

_FORM = "1"
"""Of the entry and of how IR is optimised: to be raised where either changes, for old IR is not made anew."""

STATUS = "status"
"""The slot of a function that may raise: int64 [threads], where a thread that has raised leaves 1, else 0."""

_MAY_RAISE = "; may raise\n"

_EACH_CORE = 40 << 20
"""Bytes for a core of SciPy's OpenBLAS, which Numba loads: it asks for ever where it does not get them."""


@dataclass(frozen=True)
class Operand:
    """An array that a function takes: `role` is "output", "operand" or "scratch"."""

    name: str
    role: str
    dtype: str
    rank: int


@functools.cache
def available() -> bool:
    """Whether Numba is installed."""
    return importlib.util.find_spec("numba") is not None


def extents(operand: Operand) -> tuple[str, ...]:
    """The slots of an array's extents."""
    return tuple(f"{operand.name}_{axis}" for axis in range(operand.rank))


def loop(
    function: Callable[..., Any],
    operands: tuple[Operand | None, ...],
    constants: tuple[Any, ...],
    target: Target,
    flops: int = 0,
    nbytes: int = 0,
) -> Kernel:
    """Slots: each array's name, `STATUS` where the function may raise, each array's extents by `extents`.

    Raises:
        UnsupportedError: Numba cannot compile the function, or the function makes arrays.
    """
    text = _text(function, operands, _source(operands, constants), target)
    given = [o for o in operands if o is not None]
    parameters: tuple[Parameter, ...] = (
        *(p for o in given for p in (read(o.name) if o.role == "operand" else write(o.name))),
        *(write(STATUS) if text.startswith(_MAY_RAISE) else ()),
        *(p for o in given for p in integer(*extents(o))),
    )
    return Kernel(
        name=f"loop {function.__qualname__.removesuffix('.loop').strip('_')}",
        ir=text,
        parameters=parameters,
        flops=Affine(flops),
        bytes=Affine(nbytes),
        units=Affine(1 << 10),
        foreign=True,
    )


@functools.lru_cache(512)
def _text(
    function: Callable[..., Any], operands: tuple[Operand | None, ...], source: str, target: Target
) -> str:
    print_ = _Fingerprint()
    print_.add(function)
    parts = (_FORM, importlib.metadata.version("numba"), target.key, source, *print_.parts)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache = DiskCache(cache_folder("loops"))
    if (kept := cache.get(key)) is not None:
        return kept.decode()
    text = _compiled(function, operands, source, target)
    cache.put(key, text.encode())
    return text


def _source(operands: tuple[Operand | None, ...], constants: tuple[Any, ...]) -> str:
    """A function of addresses and extents that calls `function` with arrays."""
    given = [o for o in operands if o is not None]
    pointers = [f"{o.name}_at" for o in given]
    sizes = [name for o in given for name in extents(o)]
    lines = [f"def outer({', '.join([*pointers, *sizes, 'thread', 'threads'])}):"]
    for o in given:
        shape = "".join(f"{name}, " for name in extents(o))
        lines.append(f"    {o.name} = carray({o.name}_at, ({shape}))  # {o.role} {o.dtype}")
    names = ["None" if o is None else o.name for o in operands]
    values = [_literal(c) for c in constants]
    lines.append(f"    function({', '.join(['thread', 'threads', *names, *values])})")
    return "\n".join(lines) + "\n"


def _literal(constant: Any) -> str:
    if isinstance(constant, tuple):
        return "(" + "".join(f"{_literal(c)}, " for c in constant) + ")"
    if isinstance(constant, float) and not np.isfinite(constant):
        return "nan" if constant != constant else f"{'-' * (constant < 0)}inf"
    if constant is None or isinstance(constant, bool | int | float):
        return repr(constant)
    raise UnsupportedError(f"a loop takes numbers, tuples of them and None, not {type(constant).__name__}")


def _reason(error: Exception) -> str:
    """The line of Numba's message that says what is wrong, without the colours that terminals are sent."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not line.startswith(("During", "Failed in"))), lines[0])


def _compiled(
    function: Callable[..., Any], operands: tuple[Operand | None, ...], source: str, target: Target
) -> str:
    check_memory((256 << 20) + usable_cores() * _EACH_CORE)
    import numba
    from numba.core.errors import NumbaError

    given = [o for o in operands if o is not None]
    kinds = [getattr(numba.types, "boolean" if o.dtype == "bool" else o.dtype) for o in given]
    counts = sum(o.rank for o in given) + 2
    signature = numba.types.void(*map(numba.types.CPointer, kinds), *[numba.types.int64] * counts)
    carray = numba.carray  # type: ignore[attr-defined]
    scope = {"carray": carray, "function": _Jitted().of(function), "inf": np.inf, "nan": np.nan}
    exec(source, scope)
    try:
        made = numba.cfunc(signature, error_model="numpy")(scope["outer"])
    except NumbaError as error:
        raise UnsupportedError(f"Numba cannot compile {_where(function)}: {_reason(error)}") from error
    name = made.native_name.removeprefix("cfunc.")
    text = _entry(made.inspect_llvm(), name, len(given), counts - 2, target, raises=False)
    if _RAISED in text:
        text = _MAY_RAISE + _entry(made.inspect_llvm(), name, len(given), counts - 2, target, raises=True)
    if foreign := [name for name in _DECLARED.findall(text) if not _is_everywhere(name)]:
        raise UnsupportedError(
            f"{_where(function)} needs {foreign[0]} of Numba's runtime, which a kernel does not have: a loop "
            "indexes arrays, and makes, reshapes or prints none; ask for scratch in its request"
        )
    return text


_DECLARED = re.compile(r"^declare [^@]*@([\w.]+)\(", re.M)


def _is_everywhere(symbol: str) -> bool:
    """Whether a process without Numba has a function too: LLVM's own, and those of the C library."""
    if symbol.startswith("llvm."):
        return True
    if symbol.startswith(("NRT_", "Py", "_Py", "numba", "_numba")):
        return False
    return address_of(symbol) is not None


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"loop {function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


_RAISED = f"{ENTRY}_raised"
"""Called in a first form of the entry where the function has raised: gone where that cannot happen."""


def _entry(text: str, name: str, pointers: int, sizes: int, target: Target, *, raises: bool) -> str:
    """The IR with an entry of kernels' own form, everything else local to it."""
    operands = ["ptr %result", "ptr %error"]
    slots = []
    for i in range(pointers + raises + sizes):
        kind = "ptr" if i < pointers + raises else "i64"
        slots.append(f"  %at{i} = getelementptr inbounds i64, ptr %args, i64 {i}")
        slots.append(f"  %slot{i} = load {kind}, ptr %at{i}, align 8")
        if not raises or i != pointers:
            operands.append(f"{kind} %slot{i}")
    operands += ["i64 %thread", "i64 %threads"]
    if raises:
        found = [
            "  %flag = zext i1 %wrong to i64",
            f"  %place = getelementptr inbounds i64, ptr %slot{pointers}, i64 %thread",
            "  store i64 %flag, ptr %place, align 8",
            "  ret void",
        ]
    else:
        found = [
            "  br i1 %wrong, label %raised, label %done",
            "raised:",
            f"  call void @{_RAISED}()",
            "  br label %done",
            "done:",
            "  ret void",
        ]
    lines = [
        f"define void @{ENTRY}(ptr %args, i64 %thread, i64 %threads) {{",
        "  %result = alloca ptr",
        "  %error = alloca ptr",
        *slots,
        f"  %status = call i32 @{name}({', '.join(operands)})",
        "  %wrong = icmp ne i32 %status, 0",
        *found,
        "}",
        f"declare void @{_RAISED}()",
    ]
    # arrays that a function is given have no owner, so that nobody frees them
    text = _DESTRUCTOR.sub(r"define void @NRT_MemInfo_call_dtor(ptr %0) { ret void }", text)
    return optimised_module(text + "\n" + "\n".join(lines) + "\n", target)


_DESTRUCTOR = re.compile(r"^declare void @NRT_MemInfo_call_dtor\(.*$", re.M)


@final
class _Jitted:
    """Copies of functions in which those that they call are compiled too."""

    def __init__(self) -> None:
        self._made: dict[Callable[..., Any], Any] = {}

    def of(self, function: Callable[..., Any]) -> Any:
        import numba

        if function not in self._made:
            code = function.__code__
            scope = {"__builtins__": __builtins__}
            for name in _names(code):
                if name in function.__globals__:
                    value = function.__globals__[name]
                    scope[name] = self.of(value) if isinstance(value, types.FunctionType) else value
            copy = types.FunctionType(code, {**scope, "__name__": function.__module__}, function.__name__)
            copy.__defaults__ = function.__defaults__
            self._made[function] = numba.njit(copy, error_model="numpy", nogil=True)
        return self._made[function]


@final
class _Fingerprint:
    """What a function's machine code follows from, as text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: set[int] = set()

    def add(self, function: Callable[..., Any]) -> None:
        """Add a function and all that it names.

        Raises:
            UnsupportedError: it is no function of a module.
        """
        if not isinstance(function, types.FunctionType) or function.__closure__:
            raise UnsupportedError(f"a loop is a function of a module, not {function!r}")
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        self._code(function.__code__, function.__globals__)
        self.parts.append(repr(function.__defaults__))

    def _code(self, code: types.CodeType, scope: Mapping[str, Any]) -> None:
        self.parts.append(f"{code.co_name} {code.co_varnames} {code.co_names} {code.co_code.hex()}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, scope)
            else:
                self.parts.append(repr(constant))
        for name in code.co_names:
            if name not in scope:
                continue
            value = scope[name]
            if isinstance(value, types.FunctionType):
                self.add(value)
            else:
                self.parts.append(f"{name} = {getattr(value, '__name__', None) or repr(value)}")


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found

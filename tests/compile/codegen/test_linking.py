"""What LLVM puts into objects, linked to images: each does what LLVM's own engine makes of it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest
from llvmlite import binding

from onward.compile.codegen.image import ALIGNMENT, Image
from onward.compile.codegen.jit import Jit, _machine
from onward.compile.codegen.linking import _Linking, link, linkable
from onward.compile.codegen.loading import EngineLoader, ImageLoader
from onward.compile.codegen.symbols import ENTRY
from onward.compile.codegen.target import host_target
from onward.errors import InvalidModelError, UnsupportedError

TARGET = host_target()
pytestmark = pytest.mark.skipif(not linkable(TARGET.triple), reason="objects of this platform are not linked")

CALL = f"""
declare double @cos(double)
declare double @pow(double, double)
declare double @llvm.fabs.f64(double)
define double @{ENTRY}(double %x) {{
  %a = call double @cos(double %x)
  %p = call double @llvm.fabs.f64(double %a)
  %b = call double @pow(double %p, double %x)
  %c = call double @cos(double %b)
  ret double %c
}}
"""

ADDRESS_OF_ANOTHER = f"""
declare double @cos(double)
declare double @sin(double)
define double @{ENTRY}(double %x) {{
  %small = fcmp olt double %x, 1.0
  %function = select i1 %small, ptr @cos, ptr @sin
  %y = call double %function(double %x)
  ret double %y
}}
"""

CONSTANTS = f"""
@table = private unnamed_addr constant [4 x double] [double 1.5, double 2.5, double 3.5, double 4.5], align 64
define double @{ENTRY}(double %x) {{
  %i = fptoui double %x to i64
  %p = getelementptr [4 x double], ptr @table, i64 0, i64 %i
  %v = load double, ptr %p
  %y = fadd double %v, 0x3FF3C0CA428C59FB
  ret double %y
}}
"""

JUMP_TABLE = f"""
define double @{ENTRY}(double %x) {{
  %i = fptoui double %x to i64
  switch i64 %i, label %other [i64 0, label %a i64 1, label %b i64 2, label %c i64 3, label %d]
a:
  %y = fmul double %x, 3.0
  ret double %y
b:
  %z = fdiv double %x, 7.0
  ret double %z
c:
  ret double 11.0
d:
  %w = fsub double 5.0, %x
  ret double %w
other:
  ret double -1.0
}}
"""

POINTERS_AND_FUNCTIONS = f"""
@functions = internal constant [4 x ptr] [ptr @twice, ptr @cos, ptr @half, ptr @sin]
declare double @cos(double)
declare double @sin(double)
define double @{ENTRY}(double %x) {{
  %i = fptoui double %x to i64
  %p = getelementptr [4 x ptr], ptr @functions, i64 0, i64 %i
  %f = load ptr, ptr %p
  %y = call double %f(double %x)
  ret double %y
}}
define internal double @twice(double %x) noinline {{
  %y = fmul double %x, 2.0
  ret double %y
}}
define double @half(double %x) noinline section ".text.elsewhere" {{
  %y = call double @twice(double %x)
  %z = fdiv double %y, 4.0
  ret double %z
}}
"""

UNWINDING = CONSTANTS.replace("%x) {", "%x) uwtable {")


def compiled(text: str, name: str = ENTRY) -> bytes:
    machine = _machine(TARGET)
    module = binding.parse_assembly(text)
    module.triple = TARGET.triple
    return bytes(machine.emit_object(module))


def function(address: int) -> Callable[[float], float]:
    return ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (CALL, 2),
        (ADDRESS_OF_ANOTHER, 2),
        (CONSTANTS, 0),
        (JUMP_TABLE, 0),
        (POINTERS_AND_FUNCTIONS, 4),
        (UNWINDING, 0),
    ],
    ids=["calls", "slots", "constants", "jump table", "pointers", "unwinding"],
)
def test_images_run_as_in_llvms_engine(text: str, parts: int) -> None:
    code = compiled(text)
    images, engine = ImageLoader(), EngineLoader(_machine(TARGET))
    ours = function(images.load({ENTRY: images.linked(code, ENTRY)})[ENTRY])
    theirs = function(engine.load({ENTRY: engine.linked(code, ENTRY)})[ENTRY])
    points = [0.0, 0.5, 1.0, 1.25, 2.0, 3.75]
    assert [ours(x) for x in points] == [theirs(x) for x in points]
    image = link(code, ENTRY)
    assert len(image.own) + len(image.others) == parts
    assert Image.from_bytes(image.to_bytes()) == image


def test_only_addresses_differ_between_places() -> None:
    image = link(compiled(POINTERS_AND_FUNCTIONS), ENTRY)
    others = {"cos": 1 << 46, "sin": 3}
    here, there = image.at(1 << 20, others), image.at((1 << 47) - 4096, others)
    assert sorted(symbol for _, symbol, _ in image.others) == ["cos", "sin"]
    for where, of in image.own:
        assert struct.unpack_from("<Q", here, where) == ((1 << 20) + of,)
        assert struct.unpack_from("<Q", there, where) == ((1 << 47) - 4096 + of,)
    written = {at for where, *_ in (*image.own, *image.others) for at in range(where, where + 8)}
    assert [a for n, a in enumerate(here) if n not in written] == [
        b for n, b in enumerate(there) if n not in written
    ]


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("@v = global i64 1", r"variables.*\.data"),
        ("@v = global i64 0", r"variables.*\.bss"),
        ("@v = thread_local global i64 1", r"variables.*\.tdata"),
        (
            "@v = constant [2 x i64] [i64 1, i64 2], align 128",
            "aligned to 128 bytes",
        ),
    ],
)
def test_what_kernels_do_not_have_is_refused(declaration: str, reason: str) -> None:
    text = f"{declaration}\ndefine ptr @{ENTRY}() {{\n  ret ptr @v\n}}\n"
    with pytest.raises(UnsupportedError, match=reason):
        link(compiled(text), ENTRY)


def test_other_files_are_refused() -> None:
    code = compiled(CONSTANTS)
    with pytest.raises(UnsupportedError, match="0 functions nobody"):
        link(code, "nobody")
    for other in (b"", b"MZ" + bytes(200), code[:18] + b"\xb7\x00" + code[20:]):
        with pytest.raises(UnsupportedError, match="no relocatable ELF object"):
            link(other, ENTRY)


def test_unknown_relocations_are_refused() -> None:
    code = bytearray(compiled(CALL))
    calls = [s for s in _Linking(bytes(code), ENTRY)._sections if s.name == ".rela.text"]
    struct.pack_into("<I", code, calls[0].offset + 8, 19)
    with pytest.raises(UnsupportedError, match="relocation 19 of "):
        link(bytes(code), ENTRY)


def test_what_is_no_image_is_refused() -> None:
    image = link(compiled(CALL), ENTRY)
    data = image.to_bytes()
    for other in (b"", b"{}\n", b"[]\n", b"\x7fELF\n", data.replace(b'"own"', b'"won"')):
        with pytest.raises(InvalidModelError, match="not the machine code"):
            Image.from_bytes(other)
    with pytest.raises(InvalidModelError, match="outside"):
        Image.from_bytes(data[: -len(image.block) + 8])


def test_images_are_aligned_as_vectors_are() -> None:
    jit = Jit(TARGET)
    addresses = jit.addresses([CONSTANTS.replace("1.5", f"{n}.25") for n in range(9)])
    assert {address % ALIGNMENT for address in addresses} == {0}
    assert [function(a)(0.0) for a in addresses] == [
        n + 0.25 + function(addresses[0])(0.0) - 0.25 for n in range(9)
    ]

"""Element types of tensors and what kernels compute them in: the table that every generator reads.

A row says in which type elements are stored, in which arithmetic is done and in which sums are kept. Sizes
in bytes, LLVM's spellings and lanes of vectors follow from it. A row without `generated` has its place, and
no kernels yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from onward.errors import UnsupportedError

__all__ = ["ELEMENT_TYPES", "FLOAT32", "FLOAT64", "INTEGER_TYPES", "ElementType", "element_type"]

_LLVM = {"float64": "double", "float32": "float", "float16": "half", "bfloat16": "bfloat"}
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_LLVM |= {f"{sign}int{8 * n}": f"i{8 * n}" for n in (1, 2, 4, 8) for sign in ("", "u")}
_BYTES |= {f"{sign}int{8 * n}": n for n in (1, 2, 4, 8) for sign in ("", "u")}


@dataclass(frozen=True)
class ElementType:
    """How elements are stored and computed with; the names are NumPy's.

    Attributes:
        storage: of elements in memory.
        compute: of arithmetic on them.
        accumulate: of sums of products.
        generated: whether kernels can be made.
    """

    storage: str
    compute: str
    accumulate: str
    generated: bool

    @property
    def nbytes(self) -> int:
        """Bytes of an element in memory."""
        return _BYTES[self.storage]

    @property
    def compute_nbytes(self) -> int:
        """Bytes of a lane of a vector."""
        return _BYTES[self.compute]

    @property
    def llvm(self) -> str:
        """LLVM's type of a lane."""
        return _LLVM[self.compute]

    @property
    def signed(self) -> bool:
        """Whether numbers may be below 0."""
        return not self.compute.startswith("u")


FLOAT32 = ElementType("float32", "float32", "float32", generated=True)
FLOAT64 = ElementType("float64", "float64", "float64", generated=True)

ELEMENT_TYPES = {
    "float32": FLOAT32,
    "float64": FLOAT64,
    "bfloat16": ElementType("bfloat16", "float32", "float32", generated=False),
    "float16": ElementType("float16", "float32", "float32", generated=False),
    "int8": ElementType("int8", "int32", "int32", generated=False),  # products: kernels.integer_gemm
}
"""Rows by the name of the stored type."""

INTEGER_TYPES = {
    f"{sign}int{bits}": ElementType(*(f"{sign}int{bits}",) * 3, generated=False)
    for bits in (8, 16, 32, 64)
    for sign in ("", "u")
}
"""Rows of element-wise passes in integers: numbers wrap."""


def element_type(name: str) -> ElementType:
    """The row of a stored type.

    Raises:
        UnsupportedError: there are no kernels for it.
    """
    found = ELEMENT_TYPES.get(name)
    if found is None or not found.generated:
        usable = ", ".join(n for n, row in ELEMENT_TYPES.items() if row.generated)
        raise UnsupportedError(f"no compiled kernels for elements of type {name}: choose one of {usable}")
    return found

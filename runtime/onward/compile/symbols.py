"""Functions of other libraries that kernels call by address, which differs from process to process."""

from __future__ import annotations

from enum import Enum

__all__ = ["Symbol"]


class Symbol(Enum):
    """A function."""

    SGEMM = "cblas_sgemm"

    @property
    def address(self) -> int:
        """Its address in this process."""
        from onward.compile.kernels.gemm import sgemm_address

        return sgemm_address()

"""How a large matrix product is cut so that the caches serve what its tiles read."""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen.target import Target
from onward.compile.kernels.gemm import Gemm
from onward.compile.kernels.panels import block_width, whole_lanes
from onward.compile.kernels.tile import rows_for

__all__ = ["ProductBlocking", "needs_partial", "product_blocking"]

_UNBOUNDED = 1 << 62


def needs_partial(k: int | None, target: Target) -> bool:
    """Whether C may be stored more than once, so that an epilogue operand may not be C itself."""
    tuning = target.tuning
    return k is None or k > min(tuning.product_depth, tuning.product_depth_transposed)


@dataclass(frozen=True)
class ProductBlocking:
    """How a product is cut; sizes in elements.

    Attributes:
        width: of a tile and of a panel.
        rows: of a tile; then those of tiles for what is left, of which some rows may be idle.
        depth: of a block of k, at most.
        blocks: of k; None when k is known at run time only.
        panels: of C, the narrower last one included.
        chunk: panels that stay in the second-level cache while rows pass.
        own: whether the kernel packs them.
        tall: rows of C that pass at once.
        transposed: whether A's rows, not its columns, are contiguous.
        in_place: whether slabs of a transposed A are read where they are.
        group: slabs of A that are copied together.
        slab: elements of a slab; `a_row` and `a_k` are the steps of its rows and of k in it.
        dense: whether A is one run of memory, so that the next slab follows at once.
        fetched: lines of the next slab that a tile fetches, `line` elements apart, and `walk` for each k.
    """

    width: int
    rows: tuple[int, ...]
    depth: int
    blocks: int | None
    panels: int
    chunk: int
    own: bool
    transposed: bool
    tall: int
    in_place: bool
    group: int
    slab: int
    dense: bool
    fetched: int
    walk: int
    line: int
    a_row: int
    a_k: int

    @property
    def panel(self) -> int:
        """Elements from a panel of B to the next: not a power of two, or all would fall on the same sets."""
        return (self.depth + 1) * self.width

    @property
    def part(self) -> int:
        """Elements between what the tiles of neighbouring panels fetch."""
        return self.walk * self.line if self.dense else self.fetched * self.line

    @property
    def packed(self) -> int:
        """Elements of the panels packed together."""
        return self.chunk * self.panel if self.own else 0

    @property
    def scratch(self) -> int:
        """Elements a thread."""
        return self.packed + self.group * self.slab


def product_blocking(spec: Gemm, target: Target) -> ProductBlocking:
    """The cut of a product for a target."""
    target = target.typed(spec.dtype)
    lanes, tuning = target.lanes, target.tuning
    width = block_width(spec.n, target)
    most = rows_for(target, width // lanes)
    rows = tuple(sorted({most, -(-most * 4 // 7), -(-most * 2 // 7)}, reverse=True))
    transposed = spec.a_row == 1 and spec.a_k != 1
    most_depth = tuning.product_depth_transposed if transposed else tuning.product_depth
    if spec.k is None:
        depth, blocks = most_depth, None
    else:
        blocks = max(1, -(-spec.k // most_depth))
        depth = whole_lanes(max(1, -(-spec.k // blocks)), target)
        blocks = max(1, -(-spec.k // depth))
    panels = -(-spec.n // width)
    chunk, tall = panels, _UNBOUNDED
    if transposed and blocks != 1 and spec.m is not None:
        # C stays in the cache while k passes: in pieces as square as its shape allows.
        area = tuning.product_area // target.nbytes
        side = int(area**0.5)
        chunk = max(side, area // spec.m) // width
        slabs = -(-spec.m // most)
        tall = most * _even(slabs, max(side, area // spec.n) // most)
    chunk = _even(panels, min(chunk, tuning.product_panels // (depth * width * target.nbytes)))
    in_place = transposed and spec.a_k * target.nbytes < tuning.product_far
    dense = blocks == 1 and ((spec.a_row, spec.a_k) == (spec.k, 1) or (transposed and spec.a_k == spec.m))
    pitch = depth + lanes
    return ProductBlocking(
        width=width,
        rows=rows,
        depth=depth,
        blocks=blocks,
        panels=panels,
        chunk=chunk,
        own=not spec.b_block,
        transposed=transposed,
        tall=tall,
        in_place=in_place,
        group=tuning.product_group if transposed and not in_place else 1,
        slab=whole_lanes(depth * most + lanes, target) if transposed else pitch * most,
        dense=dense,
        fetched=1 if dense else 0 if transposed else min(tuning.product_fetched, -(-most // chunk)),
        walk=-(-most // chunk) if dense else 0 if transposed else 1,
        line=spec.k if dense and spec.k is not None else spec.a_row,
        a_row=1 if transposed else pitch,
        a_k=most if transposed else 1,
    )


def _even(total: int, most: int) -> int:
    """The size of nearly equal pieces of at most `most`."""
    pieces = -(-total // max(1, most))
    return -(-total // pieces)

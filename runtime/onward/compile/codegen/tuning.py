"""Tuning constants: tile and block sizes as shares of this machine's caches, and other measured choices.

Every constant that decides how a kernel is blocked stands here, once, with its meaning and the command of
`benchmarks/` that shows what it does (`kernels.py X` is `python benchmarks/kernels.py --only X`): the named
rows, or the plan of the named network, change with it, or they are the choices between which it decides. None
changes what is computed beyond rounding: with a seed all of them are moved, and every test must hold.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Caches", "Tuning", "tuning_for"]

KIB = 1 << 10


@dataclass(frozen=True)
class Caches:
    """Bytes of a core's data caches and of a line. The third level is shared by all cores."""

    l1: int = 32 * KIB
    l2: int = 1024 * KIB
    l3: int = 8192 * KIB
    line: int = 64


@dataclass(frozen=True)
class _Setting:
    """How a constant follows from the machine: `share` of a cache, or a number by itself.

    It may be moved to any multiple of `multiple` from `least` to `most`.
    """

    of: str
    share: float
    shown: str
    least: float
    most: float
    multiple: int

    def value(self, caches: Caches, factor: float = 1.0) -> float:
        base = getattr(caches, self.of) if self.of else 1
        number = min(max(base * self.share * factor, self.least), self.most)
        return max(self.multiple, round(number / self.multiple) * self.multiple) if self.multiple else number


def _share(of: str, share: float, shown: str, *, least: float = 1, multiple: int = 1) -> Any:
    """Bytes, or what is counted, as a share of a cache."""
    return field(metadata={"setting": _Setting(of, share, shown, least, math.inf, multiple)})


def _count(number: int, shown: str, *, least: int = 1, most: float = math.inf, multiple: int = 1) -> Any:
    """A number that does not follow from a cache."""
    return field(metadata={"setting": _Setting("", number, shown, least, most, multiple)})


def _ratio(number: float, shown: str) -> Any:
    """One cost beside another."""
    return field(metadata={"setting": _Setting("", number, shown, 0.0, math.inf, 0)})


@dataclass(frozen=True)
class Tuning:
    """Blockings for one machine. Sizes in bytes hold for every element type; rows and the like count."""

    # Register tiles

    tile_rows: int = _count(28, "kernels.py 'in place'", most=28)
    """Rows of a tile at most: more of them save few loads and leave more rows over."""

    tile_narrow: float = _ratio(1.75, "kernels.py 'in place'")
    """What a vector costs in a tile of its own, beside one in a wider tile: each FMA needs its own load."""

    # Matrix products

    product_depth: int = _share("l1", 1 / 128, "kernels.py packed", least=16, multiple=16)
    """Terms of a sum that are added at a time: so many rows of a panel, of two vectors or more, and a slab of
    A share the first-level cache. Whole vectors of any width."""

    product_depth_transposed: int = _share("l1", 3 / 512, "kernels.py ' a'", least=16, multiple=16)
    """The same where A is transposed: a slab then takes a whole cache line for each row of B."""

    product_panels: int = _share("l2", 1, "kernels.py packed", least=4 * KIB)
    """Bytes of a thread's packed panels."""

    product_area: int = _share("l2", 1 / 2, "kernels.py packed", least=4 * KIB)
    """Bytes of a piece of C that stays in the second-level cache while k passes."""

    product_far: int = _share("l1", 1 / 8, "kernels.py packed")
    """Bytes between lines of a transposed A from which they fall on few sets of a cache, and A is copied."""

    product_group: int = _count(16, "kernels.py packed")
    """Slabs of a transposed A that are copied together: whole cache lines then count once."""

    product_fetched: int = _count(4, "kernels.py packed")
    """Rows of the next slab that a tile fetches at most while it computes, a line at a time."""

    product_copy: int = _count(8, "kernels.py packed")
    """Multiplications by one element that take as long as copying it."""

    product_in_place_left: int = _share("l2", 1 / 4, "kernels.py product")
    """Bytes of the left side up to which tiles read it in place at full speed."""

    product_in_place_right: int = _share("l2", 1, "kernels.py product")
    """The same of the right side."""

    product_short: int = _count(128, "kernels.py product")
    """Rows, or terms of a sum over transposed rows, from which packing costs little beside the product."""

    product_shared_rows: int = _count(8, "make bench ONLY=mlp")
    """Rows of tiles from which threads share out a weight gradient by rows: each then updates those weights
    whose gradient it made, where other shares would move half of them from core to core."""

    product_widened: int = _count(12, "kernels.py weights")
    """Rows up to which quantised weights are widened in registers: more rows share what is widened once."""

    pack_rows: int = _share("l1", 1 / 128, "kernels.py 'pack columns'", least=16, multiple=16)
    """Rows of a panel that are packed as one unit of work."""

    dots_rows: int = _count(8, "kernels.py dots")
    """Rows of a tile of dot products at most: more of them save few loads and leave more rows over."""

    dots_line: int = _count(64, "kernels.py product")
    """Length of lines from which dot products along them pay."""

    dots_block: int = _count(1024, "kernels.py product")
    """Length of lines up to which a block of them stays in the first-level cache while rows pass."""

    dots_few: int = _count(16, "kernels.py product")
    """Rows that are so few that packing longer lines, too, takes as long as the product."""

    # Direct convolution

    conv_weights: int = _share("l2", 25 / 64, "kernels.py resnet18")
    """Bytes of packed weights up to which all of them are expected to stay in the second-level cache."""

    narrow_pixels: int = _count(4, "kernels.py lenet")
    """Pixels that share a vector: more need more masks than there are registers for, and gain little."""

    narrow_sums: int = _count(8, "kernels.py lenet")
    """Sums that a tile must hold at once to hide the latency of a multiply-add."""

    narrow_body: int = _count(300, "kernels.py lenet", most=600)
    """Multiply-adds in a tile's loop: beyond, it takes long to compile and leaves the instruction cache."""

    narrow_loads: float = _ratio(0.75, "kernels.py lenet")
    """Loads for each multiply-add below which they do not hold it up."""

    narrow_held_up: float = _ratio(1.1, "kernels.py lenet")
    """What a multiply-add costs that waits for a load of its own."""

    # Weight gradients of convolution

    weights_own: int = _share("l2", 3 / 8, "kernels.py BW")
    """Bytes of panels up to which every thread has its own."""

    weights_near: int = _share("l1", 5 / 4, "kernels.py BW")
    """Bytes of x and dy that tiles read again and again, from the first-level cache or just behind it."""

    weights_few: int = _count(16, "kernels.py BW")
    """Images are read where they are when so many pixels of both, with all channels, are `weights_near`."""

    weights_few_busy: int = _count(64, "kernels.py BW")
    """The same where there is much work for each element, beside which packing costs nothing."""

    weights_busy: int = _count(250, "kernels.py BW")
    """Multiply-adds for each element of x and dy that are much work."""

    weights_far: int = _share("l2", 3, "kernels.py 'resnet18.4 BW'")
    """Bytes of panels from which they come from beyond the second-level cache."""

    weights_far_pixels: int = _count(768, "kernels.py 'resnet18.4 BW'")
    """Pixels to sum before such a panel is left."""

    weights_blocks: int = _share("l2", 3 / 4, "kernels.py BW")
    """Bytes of packed lane blocks that stay in the second-level cache while the rows pass."""

    weights_pixels: int = _count(512, "kernels.py 'lenet.1 BW'")
    """Pixels of a chunk at most."""

    weights_narrow: float = _ratio(1.5, "kernels.py BW")
    """What a tile of one vector costs beside a wider one: each multiply-add needs a load of its own."""

    weights_load: float = _ratio(0.1, "kernels.py BW")
    """What a load costs beside a multiply-add."""

    weights_fewest: int = _count(8, "kernels.py BW")
    """Multiply-adds that must be under way to hide their latency."""

    # Winograd

    winograd_channels: int = _count(32, "kernels.py resnet20")
    """Channels from which products outweigh transforms."""

    winograd_extent: int = _count(8, "kernels.py resnet18")
    """Rows and columns from which little is lost to whole squares."""

    winograd_squares: int = _count(56, "kernels.py 'F winograd'")
    """Squares of a chunk, where an image or a few have as many."""

    winograd_weights_own: int = _share("l2", 1, "kernels.py 'BW winograd'")
    """Bytes of panels up to which every thread has its own."""

    winograd_weights_squares: int = _share("l1", 7 / 1024, "kernels.py 'BW winograd'")
    """Squares of a weight gradient's chunk at most: their transformed outputs, two vectors wide, should stay
    in the first-level cache."""

    winograd_weights_least: int = _count(32, "kernels.py 'BW winograd'")
    """Squares of such a chunk at least, where an image has as many."""

    winograd_weights_chunk: int = _share("l2", 1, "kernels.py 'BW winograd'")
    """Bytes that such a chunk's transformed squares should not pass: with the panels they share the cache."""

    # Depthwise convolution

    depthwise_pixels: int = _count(6, "kernels.py mobilenet.dw")
    """Neighbouring pixels of a tile, where a quarter of the registers is as many."""

    depthwise_taps: int = _count(25, "kernels.py mobilenet.dw")
    """Taps summed in registers at most; with 16 registers two fifths of it."""

    # Pooling

    pool_unrolled: int = _count(4, "python -m benchmarks.layers lenet5")
    """Columns of a window up to which they are written out."""

    pool_band: int = _count(8, "python -m benchmarks.layers resnet50")
    """Rows of windows that a band of dx meets, about, where windows overlap."""

    pool_vectors: int = _count(4, "python -m benchmarks.layers resnet50", least=2, multiple=2)
    """Vectors of channels that a window takes at once; its gradient takes half."""

    # Element-wise passes and reductions

    element_vectors: int = _count(4, "python -m benchmarks.layers resnet20")
    """Vectors that a cheap pass handles at once."""

    element_heavy: int = _count(10, "python -m benchmarks.layers transformer_encoder")
    """Operations for an element from which vectors are handled one by one."""

    element_block: int = _count(16, "python -m benchmarks.layers resnet20")
    """Vectors of a unit of work."""

    reduce_run: int = _count(64, "python -m benchmarks.layers resnet20", least=8, most=256)
    """Rows summed by themselves, so that rounding errors do not pile up along a whole batch."""

    update_small: int = _share("l2", 1 / 2, "make bench ONLY=mlp")
    """Bytes of a parameter that is updated together with others at most: a larger one is better updated while
    its gradient is still in the cache."""

    group_operations: int = _count(24, "python -m benchmarks.layers transformer_encoder", most=48)
    """Operations of a fused group at most: beyond that, registers spill and compiling takes long."""

    group_operands: int = _count(12, "python -m benchmarks.layers transformer_encoder", least=4, most=24)
    """Tensors that a fused group reads at most."""

    recompute_flops: int = _count(10, "make bench ONLY=mobilenet_v2", least=0)
    """Arithmetic of a value that is computed again where it is read, at most."""

    # Recurrent operators

    recurrent_rows: int = _count(8, "make bench ONLY=lstm_classifier", least=2, multiple=2)
    """Rows of a tile at most: a thread's rows divide into such tiles without small ones left over."""

    recurrent_joined: int = _count(4, "make bench ONLY=lstm_classifier", most=8)
    """Blocks of columns that a tile of one row takes at once, so that its sums do not wait for each other."""

    recurrent_weights: int = _share("l2", 1, "make bench ONLY=lstm_classifier")
    """Bytes of packed weights that may be read again at every step."""

    recurrent_shared: int = _count(4, "python -m benchmarks.layers lstm_classifier --inference --batch 8")
    """Rows of a thread from which reading them pays."""


def tuning_for(caches: Caches, seed: int | None = None) -> Tuning:
    """The constants for a machine's caches; with a seed each is moved by up to four times either way."""
    draw = random.Random(seed)
    values: dict[str, Any] = {}
    for one in fields(Tuning):
        setting: _Setting = one.metadata["setting"]
        number = setting.value(caches, 1.0 if seed is None else 4 ** draw.uniform(-1, 1))
        values[one.name] = number if setting.multiple == 0 else int(number)
    return Tuning(**values)

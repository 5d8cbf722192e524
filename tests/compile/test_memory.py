"""Packing of buffers: what lives at the same time is apart, borders are shared by equals only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compile.plans import Planned, planned
from tests.compile.test_plans_zoo import make

from onward.compile.kernels.layout import Image
from onward.compile.memory import Arena, Lifetime, pack
from onward.compile.tensors import Buffer
from onward.engine.workspace import Workspace

IMAGES = (
    Image(4, 4, 3, top=1, left=1, bottom=1, right=1),
    Image(4, 4, 3, top=0, left=0, bottom=1, right=1),
    Image(8, 2, 3, top=1, left=1, bottom=1, right=1),
)


def _apart(arena: Arena, lives: Sequence[Lifetime]) -> None:
    for life in lives:
        start = arena.offsets[life.buffer]
        assert start % 64 == 0
        assert start >= 0
        assert start + life.buffer.nbytes <= arena.nbytes
    for a, b in itertools.combinations(lives, 2):
        low_a, low_b = arena.offsets[a.buffer], arena.offsets[b.buffer]
        if low_a < low_b + b.buffer.nbytes and low_b < low_a + a.buffer.nbytes:
            assert a.last < b.first or b.last < a.first, (a, b)
            # memory with a border is never written by what does not keep the border zero
            assert a.buffer.image == b.buffer.image
            assert a.buffer.image is None or (low_a, a.buffer.nbytes) == (low_b, b.buffer.nbytes)


@st.composite
def _lifetimes(draw: Any) -> list[Lifetime]:
    lives = []
    for _ in range(draw(st.integers(0, 40))):
        first = draw(st.integers(0, 30))
        image = draw(st.sampled_from((None, None, *IMAGES)))
        batch = draw(st.sampled_from((1, 2)))
        nbytes = draw(st.integers(1, 1000)) if image is None else 4 * batch * image.size
        lives.append(Lifetime(Buffer(nbytes, image=image), first, first + draw(st.integers(0, 10))))
    return lives


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(_lifetimes())
def test_what_lives_at_the_same_time_is_apart(lives: list[Lifetime]) -> None:
    _apart(pack(lives), lives)


def test_memory_is_used_again() -> None:
    lives = [Lifetime(Buffer(640), i, i) for i in range(10)]
    assert pack(lives).nbytes == 640
    image = IMAGES[0]
    lives = [Lifetime(Buffer(4 * image.size, image=image), i, i) for i in range(10)]
    assert pack(lives).nbytes < 2 * 4 * image.size


def test_neighbours_in_time_overlap() -> None:
    """A buffer that is read in the step where another is written is still alive then."""
    lives = [Lifetime(Buffer(640), 0, 1), Lifetime(Buffer(640), 1, 2)]
    assert pack(lives).nbytes == 1280


def _range(made: Planned, workspace: Workspace, buffer: Buffer) -> tuple[int, int]:
    memory = workspace.memory(made.index[buffer])
    assert memory is not None
    return memory.ctypes.data, memory.ctypes.data + memory.nbytes


@pytest.mark.parametrize("name", ["lenet5", "textcnn", "transformer_encoder", "alexnet", "resnet20"])
def test_calls_without_a_barrier_between_them_do_not_meet(name: str) -> None:
    """Their addresses are compared, not what the plan believes of its buffers."""
    zoo = make(name, 3, steps=1)
    made = planned(zoo.step.model, zoo.feeds[0], zoo.step.bindings, threads=2)
    workspace = made.plan.take()
    table = workspace.steps.table
    assert len(table) == len(made.items)
    together: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    unfenced = 0
    for item, row in zip(made.items, table, strict=True):
        reads = [_range(made, workspace, b) for b in item.reads if b.place.value != "input"]
        writes = [_range(made, workspace, b) for b in item.writes]
        for earlier_reads, earlier_writes in together:
            clashes = [
                (a, b)
                for a, b in itertools.chain(
                    itertools.product(writes, earlier_reads),
                    itertools.product(writes, earlier_writes),
                    itertools.product(reads, earlier_writes),
                )
                if a[0] < b[1] and b[0] < a[1]
            ]
            assert not clashes, item.label
        together.append((reads, writes))
        if int(row[2]) & 2:
            unfenced += 1
        else:
            together.clear()
    assert unfenced > 0

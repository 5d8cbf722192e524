"""Control flow: loops, conditions, a thread's share of the work."""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterator, Sequence

from onward.compile.codegen.values import Instructions, Int, Value

__all__ = ["Control"]


class Control(Instructions, ABC):
    """Writes branches."""

    def loop(
        self,
        start: Int,
        stop: Int,
        step: Int = 1,
        carry: Sequence[Value] = (),
        *,
        body: Callable[[Value, list[Value]], Sequence[Value]],
        nonempty: bool = False,
    ) -> list[Value]:
        """for i in range(start, stop, step): carry = body(i, carry); gives the last carry.

        Trip counts known to be 0 or 1 make no loop; any other loop is never unrolled. `nonempty` promises at
        least one trip.
        """
        carry = list(carry)
        known = all(isinstance(v, int) for v in (start, stop, step))
        if known:
            trips = len(range(int(start), int(stop), int(step)))  # type: ignore[arg-type]
            if trips == 0:
                return carry
            if trips == 1:
                return list(body(self.value(start), carry))
        first, last, stride = self.value(start), self.value(stop), self.value(step)
        before = self._block
        label, done = self._fresh("loop"), self._fresh("done")
        straight = known or nonempty
        if straight:
            self.emit(f"br label %{label}")
        else:
            enter = self.compare("slt", first, last)
            self.emit(f"br i1 {enter.ref}, label %{label}, label %{done}")
        self._start(label)
        head = len(self._lines)
        index = Value(self, "%" + self._fresh("i"), "i64")
        phis = [Value(self, "%" + self._fresh("p"), c.type) for c in carry]
        self._lines.extend([""] * (1 + len(phis)))
        results = list(body(index, phis))
        after = self.binary("add", index, stride)
        again = self.compare("slt", after, last)
        latch = self._block
        self.emit(
            f"br i1 {again.ref}, label %{label}, label %{done}, !llvm.loop {self.module.loop_metadata()}"
        )
        pairs = [(index, first, after), *zip(phis, carry, results, strict=True)]
        for n, (phi, initial, update) in enumerate(pairs):
            self._lines[head + n] = (
                f"  {phi.ref} = phi {phi.type} [ {initial.ref}, %{before} ], [ {update.ref}, %{latch} ]"
            )
        self._start(done)
        if straight:
            return results
        return [
            self.instruction(r.type, f"phi {r.type} [ {c.ref}, %{before} ], [ {r.ref}, %{latch} ]")
            for c, r in zip(carry, results, strict=True)
        ]

    @contextlib.contextmanager
    def range(self, start: Int, stop: Int, step: Int = 1) -> Iterator[Value]:
        """`with f.range(a, b) as i:` is a loop without carried values; never unrolled."""
        first, last, stride = self.value(start), self.value(stop), self.value(step)
        known = all(isinstance(v, int) for v in (start, stop, step))
        if known and len(range(int(start), int(stop), int(step))) == 1:  # type: ignore[arg-type]
            yield first
            return
        before = self._block
        label, done = self._fresh("loop"), self._fresh("done")
        enter = self.compare("slt", first, last)
        self.emit(f"br i1 {enter.ref}, label %{label}, label %{done}")
        self._start(label)
        head = len(self._lines)
        index = Value(self, "%" + self._fresh("i"), "i64")
        self._lines.append("")
        yield index
        after = self.binary("add", index, stride)
        again = self.compare("slt", after, last)
        latch = self._block
        self.emit(
            f"br i1 {again.ref}, label %{label}, label %{done}, !llvm.loop {self.module.loop_metadata()}"
        )
        self._lines[head] = f"  {index.ref} = phi i64 [ {first.ref}, %{before} ], [ {after.ref}, %{latch} ]"
        self._start(done)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """`with f.when(c):` runs its block where the scalar condition holds."""
        label, done = self._fresh("then"), self._fresh("done")
        self.emit(f"br i1 {condition.ref}, label %{label}, label %{done}")
        self._start(label)
        yield
        self.emit(f"br label %{done}")
        self._start(done)

    @contextlib.contextmanager
    def repeat(self) -> Iterator[Callable[[Value], None]]:
        """`with f.repeat() as leave:` loops until `leave(condition)` finds its condition true."""
        label, done = self._fresh("again"), self._fresh("done")
        self.emit(f"br label %{label}")
        self._start(label)

        def leave(condition: Value) -> None:
            more = self._fresh("more")
            self.emit(f"br i1 {condition.ref}, label %{done}, label %{more}")
            self._start(more)

        yield leave
        self.emit(f"br label %{label}")
        self._start(done)

    def ret(self) -> None:
        """Return from the function."""
        self.emit("ret void")

    def share(self, total: Int, thread: Value, threads: Value) -> tuple[Value, Value]:
        """The half-open range of `total` work units that is this thread's."""
        low = self.binary("udiv", self.value(total) * thread, threads)
        high = self.binary("udiv", self.value(total) * (thread + 1), threads)
        return low, high

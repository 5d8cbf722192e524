"""The code that a team's threads run, as LLVM IR: claiming parts of segments, waiting, waking.

A run is a list of segments. A segment is some steps that need no barrier between them; a team of P threads
cuts it into P parts, and part q calls each of its kernels as `kernel(args, q, P)`. A part's result depends on
q and P alone, so whichever thread comes first may compute it: its own thread as a rule, which finds the data
in its cache, else one that has nothing left to do.

What threads share, and why it is right (`control` slots in capitals):

- EPOCH is 4 * n + state, with n raised by one for each segment of each run, so no number comes twice. Its
  state is OPEN (parts may be claimed), LEADER (a step that thread 0 alone runs), IDLE (no run) or QUIT.
- A thread that has read an open epoch e claims part q by exchanging CLAIM[q] from a smaller number to e.
  CLAIM[q] only grows, so one thread alone succeeds for (e, q). The epoch ends only after all P parts of e
  were claimed and counted in ARRIVED. A claim that succeeds hence proves that e has not ended, and that it
  will not until the claimer has added itself to ARRIVED. A thread that slept through any number of epochs
  finds CLAIM[q] >= e for all q and does nothing.
- What describes the run (RUN, BASE, and the tables that they lead to) is written by the leader between runs,
  and read by workers only while they hold a claim. So it may be freed as soon as a run has returned, though a
  worker may not have noticed that there was one.
- The thread whose addition makes ARRIVED equal P is the last; nobody else can be in this epoch's parts. It
  sets ARRIVED to 0 and stores the next epoch.
- A part's writes come before its addition to ARRIVED (release); the last addition comes after all others in
  one chain of read-modify-writes (acquire), then the store of the next epoch (release); a thread that reads
  this epoch (acquire) sees all that was written in the one before. All five are sequentially consistent here.
- A worker going to sleep sets PARKED, then reads EPOCH; who opens an epoch stores EPOCH, then reads PARKED.
  In the one order of sequentially consistent operations at least one of the two sees the other. The lock
  closes the gap between the worker's look and its sleep.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value

__all__ = ["ALONE", "FOREIGN", "NO_BARRIER", "Code", "code", "slots"]

ALONE, NO_BARRIER, FOREIGN = 1, 2, 4

# The control block: 64-bit slots. Slots that different threads write stand on cache lines of their own.
EPOCH = 0
RUN = 16  # address of the run's description
BASE = 17  # the number of its first segment
ARRIVED = 32
PARKED = 48
PARTS = 64  # constant from here: the number of threads
SYSTEM = 65  # addresses of the operating system's functions: yield, nap, lock, unlock, wait, broadcast
YIELD, NAP, LOCK, UNLOCK, WAIT, BROADCAST = range(SYSTEM, SYSTEM + 6)
LOOKS_BARRIER = 71  # looks at the epoch, in a run, before a thread gives its core away
LOOKS_PARK = 72  # looks at the epoch, between runs, before a worker goes to sleep
MUTEX = 80  # 128 bytes of storage each for the platform's lock and condition variable
CONDITION = 96
CLAIM = 112  # a line for each part

OPEN, LEADER, IDLE, QUIT = range(4)

# A run's description. Rows of the table: kernel, args, flags; of the segments: first row, last row, state.
# WIDTH is in parts. Where STATUS is not 0, the run ends after the segment: 1 for an exception of a Python
# step, less than 0 for what a foreign function gave, whose row is in FAILED.
TABLE, SEGMENTS, COUNT, WIDTH, STATUS, FAILED = range(6)
RUN_FIELDS = 6

YIELDS = 4700
"""How often a thread gives its core away before naps of 50 µs, or before it sleeps: about 2 ms."""

PATIENCE = 8
"""Looks at the epoch before a thread claims what is another's: under 1 µs. That one is mostly just coming."""


def slots(parts: int) -> int:
    """The size of a control block."""
    return CLAIM + 16 * parts


@dataclass(frozen=True)
class Code:
    """Modules of IR whose entries are: `run(control, description, 0)` by the leader; `work(control, thread,
    0)`, which a worker enters once; `quit(control, 0, 0)`; `solo(description, 0, 0)`, a whole run on one
    thread; `looks(control, count, 0)`, to measure what a look takes."""

    run: str
    work: str
    quit: str
    solo: str
    looks: str


Delay = Callable[[Function], None]


def code(target: Target, delay: Delay = lambda f: None) -> Code:
    """All entries.

    Args:
        target: the processor.
        delay: emits what is to happen between two operations on shared slots. The protocol is right whatever
            the time between two of them, which tests make long here.
    """
    writer = _Writer(delay)
    return Code(*(make(target) for make in (writer.run, writer.work, writer.quit, writer.solo, writer.looks)))


@dataclass(frozen=True)
class _Writer:
    delay: Delay

    def run(self, target: Target) -> str:
        module = Module(target)
        part = self._part(module)
        advance = self._advance(module)
        take = self._take(module, part, advance)
        f = module.entry()
        control, description, _ = f.arguments
        base = f.binary("lshr", _load(f, control, EPOCH), 2) + 1
        f.store(description, control, RUN)
        f.store(base, control, BASE)
        run = f.cast("inttoptr", description, "ptr")
        f.store(f.value(0), run, STATUS)
        state = f.load(f.cast("inttoptr", f.load(run, "i64", SEGMENTS), "ptr"), "i64", 2)
        self.delay(f)
        self._open(f, control, base, state)

        def leader(epoch: Value) -> None:
            with f.when(f.compare("eq", f.binary("and", epoch, 3), LEADER)):
                index = f.binary("lshr", epoch, 2) - base
                f.invoke(part, (run, index, f.value(0), f.value(1)))
                f.invoke(advance, (control, epoch))

        self._watch(f, control, f.value(0), take, IDLE, leader)
        f.ret()
        return module.text()

    def work(self, target: Target) -> str:
        module = Module(target)
        part = self._part(module)
        take = self._take(module, part, self._advance(module))
        f = module.entry()
        control, thread, _ = f.arguments
        self._watch(f, control, thread, take, QUIT, None)
        f.ret()
        return module.text()

    def quit(self, target: Target) -> str:
        module = Module(target)
        f = module.entry()
        control = f.arguments[0]
        number = f.binary("lshr", _load(f, control, EPOCH), 2) + 1
        self._open(f, control, number, f.value(QUIT))
        f.ret()
        return module.text()

    def solo(self, target: Target) -> str:
        """All parts of each segment one after the other, on the caller's thread."""
        module = Module(target)
        part = self._part(module)
        f = module.entry()
        run = f.arguments[0]
        f.store(f.value(0), run, STATUS)
        count, width = f.load(run, "i64", COUNT), f.load(run, "i64", WIDTH)
        segments = f.cast("inttoptr", f.load(run, "i64", SEGMENTS), "ptr")
        index = f.local("i64")
        f.store(f.value(0), index)
        with f.repeat() as leave:
            i = f.load(index, "i64")
            leave(f.compare("sge", i, count))
            leave(f.compare("ne", _load(f, run, STATUS), 0))
            f.store(i + 1, index)
            alone = f.compare("eq", f.load(segments, "i64", i * 3 + 2), LEADER)
            parts = f.select(alone, f.value(1), width)
            with f.range(0, parts) as q:
                f.invoke(part, (run, i, q, parts))
        f.ret()
        return module.text()

    def looks(self, target: Target) -> str:
        """Look at a value a number of times, as threads do that wait."""
        module = Module(target)
        f = module.entry()
        control, count, _ = f.arguments
        with f.range(0, count):
            _load(f, control, EPOCH)
            _pause(f)
        f.ret()
        return module.text()

    def _watch(
        self,
        f: Function,
        control: Value,
        thread: Value,
        take: Function,
        end: int,
        leader: Callable[[Value], None] | None,
    ) -> None:
        """Take part in every epoch, until one has the state `end`."""
        parts = f.load(control, "i64", PARTS)
        mine, spins, patience, taken = (f.local("i64") for _ in range(4))
        f.store(f.value(-1), mine)
        f.store(f.value(0), spins)
        f.store(f.value(PATIENCE), patience)
        with f.repeat() as leave:
            epoch = _load(f, control, EPOCH)
            state = f.binary("and", epoch, 3)
            leave(f.compare("eq", state, end))
            self.delay(f)
            opened = f.compare("eq", state, OPEN)
            fresh = f.compare("ne", epoch, f.load(mine, "i64"))
            with f.when(fresh):
                f.store(epoch, mine)
                f.store(f.value(0), spins)
                with f.when(opened):
                    f.invoke(take, (control, epoch, thread, parts, taken))
                if leader is not None:
                    leader(epoch)
            with f.when(f.binary("xor", fresh, f.value(1, "i1"))):
                count = f.load(spins, "i64") + 1
                f.store(count, spins)
                late = f.compare("eq", count, f.load(patience, "i64"))
                with f.when(f.binary("and", opened, late)):
                    f.store(f.value(0), taken)
                    with f.range(1, parts) as k:
                        f.invoke(take, (control, epoch, (thread + k) % parts, parts, taken))
                    absent = f.compare("ne", f.load(taken, "i64"), 0)
                    f.store(f.select(absent, f.value(1), f.value(PATIENCE)), patience)
                self._wait(f, control, epoch, count, park=leader is None)

    def _wait(self, f: Function, control: Value, epoch: Value, count: Value, *, park: bool) -> None:
        """One look's pause: longer the more there were."""
        idle = f.compare("eq", f.binary("and", epoch, 3), IDLE)
        short, long = f.load(control, "i64", LOOKS_BARRIER), f.load(control, "i64", LOOKS_PARK)
        first = f.select(idle, long, short)
        last = f.select(idle, long, short + YIELDS)
        with f.when(f.compare("slt", count, first)):
            _pause(f)
        with f.when(f.binary("and", f.compare("sge", count, first), f.compare("slt", count, last))):
            _system_call(f, control, YIELD, "")
        with f.when(f.compare("sge", count, last)):
            if park:
                self._park(f, control, epoch)
            else:
                _system_call(f, control, NAP, "i32 1" if sys.platform == "win32" else "i32 50")

    def _take(self, module: Module, part: Function, advance: Function) -> Function:
        """Claim a part of an open epoch and run it, unless another thread has it."""
        f = module.function(
            "take",
            (("control", "ptr"), ("epoch", "i64"), ("q", "i64"), ("parts", "i64"), ("taken", "ptr")),
        )
        control, epoch, q, parts, taken = f.arguments
        claim = f.at(control, q * 16 + CLAIM, "i64")
        seen = _load(f, claim, 0)
        self.delay(f)
        with f.when(f.compare("slt", seen, epoch)), f.when(_exchange(f, claim, seen, epoch)):
            self.delay(f)
            f.store(f.value(1), taken)
            run = f.load(control, "ptr", RUN)
            index = f.binary("lshr", epoch, 2) - f.load(control, "i64", BASE)
            f.invoke(part, (run, index, q, parts))
            self.delay(f)
            last = f.compare("eq", _add(f, control, ARRIVED, 1) + 1, parts)
            with f.when(last):
                self.delay(f)
                f.invoke(advance, (control, epoch))
        f.ret()
        return f

    def _advance(self, module: Module) -> Function:
        """Open what follows an epoch whose parts are all done."""
        f = module.function("advance", (("control", "ptr"), ("epoch", "i64")))
        control, epoch = f.arguments
        f.store(f.value(0), control, ARRIVED)
        number = f.binary("lshr", epoch, 2) + 1
        index = number - f.load(control, "i64", BASE)
        run = f.load(control, "ptr", RUN)
        more = f.compare("slt", index, f.load(run, "i64", COUNT))
        more = f.binary("and", more, f.compare("eq", _load(f, run, STATUS), 0))
        state = f.local("i64")
        f.store(f.value(IDLE), state)
        with f.when(more):
            segments = f.cast("inttoptr", f.load(run, "i64", SEGMENTS), "ptr")
            f.store(f.load(segments, "i64", index * 3 + 2), state)
        self._open(f, control, number, f.load(state, "i64"))
        f.ret()
        return f

    def _part(self, module: Module) -> Function:
        """The steps of one part of a segment."""
        f = module.function("part", (("run", "ptr"), ("index", "i64"), ("q", "i64"), ("parts", "i64")))
        run, index, q, parts = f.arguments
        table = f.cast("inttoptr", f.load(run, "i64", TABLE), "ptr")
        segments = f.cast("inttoptr", f.load(run, "i64", SEGMENTS), "ptr")
        first, last = f.load(segments, "i64", index * 3), f.load(segments, "i64", index * 3 + 1)
        with f.range(first, last) as i:
            entry = f.load(table, "ptr", i * 3)
            args = f.load(table, "i64", i * 3 + 1)
            foreign = f.compare("ne", f.binary("and", f.load(table, "i64", i * 3 + 2), FOREIGN), 0)
            with f.when(f.binary("xor", foreign, f.value(1, "i1"))):
                f.emit(f"call void {entry.ref}(i64 {args.ref}, i64 {q.ref}, i64 {parts.ref})")
            with f.when(f.binary("and", foreign, f.compare("eq", q, 0))):
                self._foreign(f, run, i, entry, args)
        f.ret()
        return f

    def _foreign(self, f: Function, run: Value, row: Value, entry: Value, args: Value) -> None:
        """Call a foreign function until it says that it is done, or failed."""
        with f.repeat() as leave:
            answer = f.instruction("i64", f"call i64 {entry.ref}(i64 {args.ref})")
            with f.when(f.compare("slt", answer, 0)):
                f.store(row, run, FAILED)
                _store(f, answer, run, STATUS)
            leave(f.compare("sle", answer, 0))
            _pause(f)

    def _open(self, f: Function, control: Value, number: Value, state: Value) -> None:
        """Make an epoch the current one, and wake those that sleep if it is for them."""
        _store(f, f.binary("shl", number, 2) + state, control, EPOCH)
        self.delay(f)
        mutex, condition = f.at(control, MUTEX, "i64"), f.at(control, CONDITION, "i64")
        theirs = f.binary("or", f.compare("eq", state, OPEN), f.compare("eq", state, QUIT))
        asleep = f.compare("ne", _load(f, control, PARKED), 0)
        with f.when(f.binary("and", theirs, asleep)):
            _store(f, f.value(0), control, PARKED)
            self.delay(f)
            _system_call(f, control, LOCK, f"ptr {mutex.ref}")
            _system_call(f, control, BROADCAST, f"ptr {condition.ref}")
            _system_call(f, control, UNLOCK, f"ptr {mutex.ref}")

    def _park(self, f: Function, control: Value, seen: Value) -> None:
        """Sleep until there is another epoch than `seen` that is for workers."""
        mutex, condition = f.at(control, MUTEX, "i64"), f.at(control, CONDITION, "i64")
        _system_call(f, control, LOCK, f"ptr {mutex.ref}")
        with f.repeat() as leave:
            _store(f, f.value(1), control, PARKED)
            self.delay(f)
            epoch = _load(f, control, EPOCH)
            state = f.binary("and", epoch, 3)
            theirs = f.binary("or", f.compare("eq", state, OPEN), f.compare("eq", state, QUIT))
            leave(f.binary("and", theirs, f.compare("ne", epoch, seen)))
            # The last two arguments are Windows' time limit and flags; nothing else looks at them.
            _system_call(f, control, WAIT, f"ptr {condition.ref}, ptr {mutex.ref}, i32 -1, i32 0")
        _system_call(f, control, UNLOCK, f"ptr {mutex.ref}")


def _system_call(f: Function, control: Value, slot: int, arguments: str) -> None:
    function = f.load(control, "ptr", slot)
    f.emit(f"call void {function.ref}({arguments})")


def _load(f: Function, block: Value, slot: int) -> Value:
    address = f.at(block, slot, "i64")
    return f.instruction("i64", f"load atomic i64, ptr {address.ref} seq_cst, align 8")


def _store(f: Function, value: Value, block: Value, slot: int) -> None:
    address = f.at(block, slot, "i64")
    f.emit(f"store atomic i64 {value.ref}, ptr {address.ref} seq_cst, align 8")


def _add(f: Function, block: Value, slot: int, amount: int) -> Value:
    address = f.at(block, slot, "i64")
    return f.instruction("i64", f"atomicrmw add ptr {address.ref}, i64 {amount} seq_cst, align 8")


def _exchange(f: Function, address: Value, old: Value, new: Value) -> Value:
    """Whether the slot held `old`, and now holds `new`."""
    pair = f.instruction(
        "{ i64, i1 }",
        f"cmpxchg ptr {address.ref}, i64 {old.ref}, i64 {new.ref} seq_cst seq_cst, align 8",
    )
    return f.instruction("i1", f"extractvalue {{ i64, i1 }} {pair.ref}, 1")


def _pause(f: Function) -> None:
    if f.module.target.x86:
        f.call("llvm.x86.sse2.pause", "void", ())

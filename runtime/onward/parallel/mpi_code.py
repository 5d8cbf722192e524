"""MPI's started collectives and `MPI_Test` as functions that plans call by address, past Python.

Handles and addresses are in the context, since they differ from process to process: the machine code does
not. Handles are passed as 64-bit numbers: some libraries have pointers, others ints, and every calling
convention that there are compilers for here leaves the upper half of an int alone.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any, final

import numpy as np

from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.symbols import ENTRY
from onward.graph.foreign import Foreign
from onward.parallel.calls import Operation

__all__ = ["NativeCalls"]

_TAGS = 4096
_SEMAPHORE_BYTES = 64
"""More than a sem_t has anywhere."""
_TABLE = 24
_ROW = 3
(
    _START_CALL,
    _TEST,
    _CLOCK,
    _YIELD,
    _COMMUNICATOR,
    _SUM,
    _IN_PLACE,
    _FLOAT,
    _DOUBLE,
    _SHORT,
    _RANKS,
    _ACTIVE,
    _SINCE,
    _WAITED,
    _UNDER_WAY,
    _BYTES,
    _PENDING,
    _LAST,
    _SEMAPHORE,
    _POST,
    _SLEEP,
    _SECONDS,
    _NANOSECONDS,
    _LONGEST,
) = range(24)
"""Words of the context; the table follows: for each tag its request, the time of its start, or 0, and whether
a thread is looking after it just now. Failed calls have their code, below 0, in the place of the time."""

_NOW = f"""
define internal i64 @{ENTRY}_now(ptr %c) noinline {{
entry:
  %t = alloca [2 x i64], align 8
  %p = getelementptr i64, ptr %c, i64 {_CLOCK}
  %f = load ptr, ptr %p, align 8
  %r = call i32 %f(i32 1, ptr %t)
  %s = load i64, ptr %t, align 8
  %q = getelementptr i64, ptr %t, i64 1
  %n = load i64, ptr %q, align 8
  %m = mul i64 %s, 1000000000
  %v = add i64 %m, %n
  ret i64 %v
}}

define internal void @{ENTRY}_add(ptr %c, i64 %word, i64 %more) noinline {{
entry:
  %p = getelementptr i64, ptr %c, i64 %word
  %old = atomicrmw add ptr %p, i64 %more seq_cst
  ret void
}}

define internal i64 @{ENTRY}_poll(ptr %c, i64 %tag) noinline {{
entry:
  %status = alloca [16 x i64], align 8
  %flag = alloca i32, align 4
  store i32 0, ptr %flag, align 4
  %row = mul i64 %tag, {_ROW}
  %at = add i64 %row, {_TABLE}
  %request = getelementptr i64, ptr %c, i64 %at
  %start = getelementptr i64, ptr %request, i64 1
  %busy = getelementptr i64, ptr %request, i64 2
  %before = load atomic i64, ptr %start seq_cst, align 8
  %idle = icmp sle i64 %before, 0
  br i1 %idle, label %over, label %enter
enter:
  %pair = cmpxchg ptr %busy, i64 0, i64 1 seq_cst seq_cst
  %mine = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %mine, label %inside, label %again
inside:
  %begun = load atomic i64, ptr %start seq_cst, align 8
  %gone = icmp sle i64 %begun, 0
  br i1 %gone, label %leave, label %test
test:
  %p = getelementptr i64, ptr %c, i64 {_TEST}
  %f = load ptr, ptr %p, align 8
  %code = call i32 %f(ptr %request, ptr %flag, ptr %status)
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %fail, label %look
look:
  %set = load i32, ptr %flag, align 4
  %open = icmp eq i32 %set, 0
  br i1 %open, label %release, label %ended
ended:
  %now = call i64 @{ENTRY}_now(ptr %c)
  %took = sub i64 %now, %begun
  call void @{ENTRY}_add(ptr %c, i64 {_UNDER_WAY}, i64 %took)
  br label %settle
fail:
  %wide = sext i32 %code to i64
  %size = call i64 @llvm.abs.i64(i64 %wide, i1 false)
  %minus = sub i64 0, %size
  br label %settle
settle:
  %result = phi i64 [ 0, %ended ], [ %minus, %fail ]
  store atomic i64 %result, ptr %start seq_cst, align 8
  call void @{ENTRY}_add(ptr %c, i64 {_PENDING}, i64 -1)
  br label %leave
release:
  store atomic i64 0, ptr %busy seq_cst, align 8
  br label %again
leave:
  store atomic i64 0, ptr %busy seq_cst, align 8
  br label %over
over:
  %state = load atomic i64, ptr %start seq_cst, align 8
  ret i64 %state
again:
  ret i64 1
}}

declare i64 @llvm.abs.i64(i64, i1)
"""

_HEAD = f"""
define i64 @{ENTRY}(ptr %args) {{
entry:
  %c = load ptr, ptr %args, align 8
  %tagp = getelementptr i64, ptr %args, i64 4
  %tag = load i64, ptr %tagp, align 8
  %activep = getelementptr i64, ptr %c, i64 {_ACTIVE}
  %active = load i64, ptr %activep, align 8
  %off = icmp eq i64 %active, 0
  br i1 %off, label %done, label %on
"""

_FUNCTIONS: dict[Operation, str] = {
    "all-reduce": "MPI_Iallreduce",
    "all-to-all": "MPI_Ialltoall",
    "all-gather": "MPI_Iallgather",
}
_CALLS: dict[Operation, str] = {
    "all-reduce": """
  %code = call i32 %f(ptr %in, ptr %address, i32 %n, i64 %type, i64 %sum, i64 %comm, ptr %request)
""",
    "all-to-all": """
  %pieces = mul i64 %ranks, 2
  %piece = udiv i64 %count, %pieces
  %m = trunc i64 %piece to i32
  %half = udiv i64 %bytes, 2
  %received = getelementptr i8, ptr %address, i64 %half
  %code = call i32 %f(ptr %address, i32 %m, i64 %type, ptr %received, i32 %m, i64 %type, i64 %comm,
                      ptr %request)
""",
    "all-gather": """
  %piece = udiv i64 %count, %ranks
  %m = trunc i64 %piece to i32
  %code = call i32 %f(ptr %in, i32 0, i64 %type, ptr %address, i32 %m, i64 %type, i64 %comm, ptr %request)
""",
}


def _start(operation: Operation) -> str:
    """Numbers of two bytes are only moved."""
    return (
        _HEAD
        + f"""
on:
  %addressp = getelementptr i64, ptr %args, i64 1
  %address = load ptr, ptr %addressp, align 8
  %countp = getelementptr i64, ptr %args, i64 2
  %count = load i64, ptr %countp, align 8
  %kindp = getelementptr i64, ptr %args, i64 3
  %kind = load i64, ptr %kindp, align 8
  %single = icmp eq i64 %kind, 1
  %double = icmp eq i64 %kind, 11
  %short = icmp eq i64 %kind, {-1 if operation == "all-reduce" else 16}
  %wide = or i1 %single, %double
  %known = or i1 %wide, %short
  br i1 %known, label %typed, label %untyped
untyped:
  ret i64 -1003
typed:
  %few = icmp ult i64 %tag, {_TAGS}
  %fits = icmp ult i64 %count, 2147483648
  %fine = and i1 %few, %fits
  br i1 %fine, label %go, label %toobig
toobig:
  ret i64 -1004
go:
  %word1 = select i1 %single, i64 {_FLOAT}, i64 {_DOUBLE}
  %word = select i1 %short, i64 {_SHORT}, i64 %word1
  %typep = getelementptr i64, ptr %c, i64 %word
  %type = load i64, ptr %typep, align 8
  %commp = getelementptr i64, ptr %c, i64 {_COMMUNICATOR}
  %comm = load i64, ptr %commp, align 8
  %sump = getelementptr i64, ptr %c, i64 {_SUM}
  %sum = load i64, ptr %sump, align 8
  %inp = getelementptr i64, ptr %c, i64 {_IN_PLACE}
  %in = load ptr, ptr %inp, align 8
  %ranksp = getelementptr i64, ptr %c, i64 {_RANKS}
  %ranks = load i64, ptr %ranksp, align 8
  %row = mul i64 %tag, {_ROW}
  %at = add i64 %row, {_TABLE}
  %request = getelementptr i64, ptr %c, i64 %at
  %start = getelementptr i64, ptr %request, i64 1
  %now = call i64 @{ENTRY}_now(ptr %c)
  %n = trunc i64 %count to i32
  %each1 = select i1 %single, i64 4, i64 8
  %each = select i1 %short, i64 2, i64 %each1
  %bytes = mul i64 %count, %each
  %fp = getelementptr i64, ptr %c, i64 {_START_CALL}
  %f = load ptr, ptr %fp, align 8
{_CALLS[operation]}
  %bad = icmp ne i32 %code, 0
  br i1 %bad, label %fail, label %begun
fail:
  %failure = sext i32 %code to i64
  %size = call i64 @llvm.abs.i64(i64 %failure, i1 false)
  %minus = sub i64 0, %size
  ret i64 %minus
begun:
  call void @{ENTRY}_add(ptr %c, i64 {_BYTES}, i64 %bytes)
  call void @{ENTRY}_add(ptr %c, i64 {_PENDING}, i64 1)
  %lastp = getelementptr i64, ptr %c, i64 {_LAST}
  %highest = atomicrmw max ptr %lastp, i64 %tag seq_cst
  store atomic i64 %now, ptr %start seq_cst, align 8
  %semp = getelementptr i64, ptr %c, i64 {_SEMAPHORE}
  %sem = load i64, ptr %semp, align 8
  %helped = icmp ne i64 %sem, 0
  br i1 %helped, label %post, label %next
post:
  %postp = getelementptr i64, ptr %c, i64 {_POST}
  %wake = load ptr, ptr %postp, align 8
  %woken = call i32 %wake(i64 %sem)
  br label %next
next:
  %first = icmp eq i64 %tag, 0
  br i1 %first, label %done, label %push
push:
  %before = sub i64 %tag, 1
  %moved = call i64 @{ENTRY}_poll(ptr %c, i64 %before)
  %broken = icmp slt i64 %moved, 0
  br i1 %broken, label %stop, label %done
stop:
  ret i64 %moved
done:
  ret i64 0
}}
"""
        + _NOW
    )


_WAIT = (
    _HEAD
    + f"""
on:
  %sincep = getelementptr i64, ptr %c, i64 {_SINCE}
  %before = load i64, ptr %sincep, align 8
  %fresh = icmp eq i64 %before, 0
  br i1 %fresh, label %begin, label %poll
begin:
  %entered = call i64 @{ENTRY}_now(ptr %c)
  store i64 %entered, ptr %sincep, align 8
  br label %poll
poll:
  %since = load i64, ptr %sincep, align 8
  %state = call i64 @{ENTRY}_poll(ptr %c, i64 %tag)
  %open = icmp sgt i64 %state, 0
  br i1 %open, label %again, label %over
again:
  %yp = getelementptr i64, ptr %c, i64 {_YIELD}
  %y = load ptr, ptr %yp, align 8
  %ignored = call i32 %y()
  ret i64 1
over:
  %now = call i64 @{ENTRY}_now(ptr %c)
  %took = sub i64 %now, %since
  call void @{ENTRY}_add(ptr %c, i64 {_WAITED}, i64 %took)
  %longestp = getelementptr i64, ptr %c, i64 {_LONGEST}
  %longest = atomicrmw max ptr %longestp, i64 %took seq_cst
  store i64 0, ptr %sincep, align 8
  ret i64 %state
done:
  ret i64 0
}}
"""
    + _NOW
)


_PROGRESS = (
    f"""
define i64 @{ENTRY}(ptr %c) {{
entry:
  %pendingp = getelementptr i64, ptr %c, i64 {_PENDING}
  %lastp = getelementptr i64, ptr %c, i64 {_LAST}
  br label %look
look:
  %pending = load atomic i64, ptr %pendingp seq_cst, align 8
  %none = icmp eq i64 %pending, 0
  br i1 %none, label %done, label %all
all:
  %last = load atomic i64, ptr %lastp seq_cst, align 8
  br label %each
each:
  %tag = phi i64 [ 0, %all ], [ %more, %each ]
  %state = call i64 @{ENTRY}_poll(ptr %c, i64 %tag)
  %more = add i64 %tag, 1
  %further = icmp sle i64 %more, %last
  br i1 %further, label %each, label %rest
rest:
  %fp = getelementptr i64, ptr %c, i64 {_SLEEP}
  %f = load ptr, ptr %fp, align 8
  %time = getelementptr i64, ptr %c, i64 {_SECONDS}
  %slept = call i32 %f(ptr %time, ptr null)
  br label %look
done:
  ret i64 0
}}
"""
    + _NOW
)
"""Looks after what is under way until nothing is."""


@final
class NativeCalls:
    """An operation of an MPI library on one of its communicators.

    Args:
        library: has the operation's `MPI_I...`, and `MPI_Test`.
        operation: what is called.
        ranks: how many the communicator has.
        handles: of the communicator, MPI_SUM, MPI_IN_PLACE, MPI_FLOAT, MPI_DOUBLE and MPI_UINT16_T.
        pause: seconds between looks of a thread that moves on what is under way, while plans compute; None:
            there is no such thread. The library must let several threads call it at once.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        operation: Operation,
        ranks: int,
        handles: tuple[int, int, int, int, int, int],
        pause: float | None = None,
    ) -> None:
        self._context = np.zeros(_TABLE + _ROW * _TAGS, np.int64)
        process = ctypes.CDLL(None)
        named = (_COMMUNICATOR, _SUM, _IN_PLACE, _FLOAT, _DOUBLE, _SHORT)
        words = {
            _START_CALL: _address(getattr(library, _FUNCTIONS[operation])),
            _TEST: _address(library.MPI_Test),
            _CLOCK: _address(process.clock_gettime),
            _YIELD: _address(process.sched_yield),
            _RANKS: ranks,
            _ACTIVE: 1,
            **dict(zip(named, handles, strict=True)),
        }
        self._semaphore = ctypes.create_string_buffer(_SEMAPHORE_BYTES)
        helped = pause is not None and process.sem_init(self._semaphore, 0, 0) == 0
        if pause is not None and helped:
            words |= {
                _SEMAPHORE: ctypes.addressof(self._semaphore),
                _POST: _address(process.sem_post),
                _SLEEP: _address(process.nanosleep),
                _NANOSECONDS: round(pause * 1e9),
            }
        for word, value in words.items():
            self._context[word] = np.uint64(value & 0xFFFFFFFFFFFFFFFF).astype(np.int64)
        start, wait, progress = default_jit().addresses((_start(operation), _WAIT, _PROGRESS))
        self.functions = Foreign(start, wait, self._context.ctypes.data)
        if helped:
            threading.Thread(target=self._look_after, args=(process, progress), daemon=True).start()

    def _look_after(self, process: ctypes.CDLL, address: int) -> None:
        """Move on what is under way, for ever; nothing is between steps, and at the end of the program."""
        progress = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
        while True:
            process.sem_wait(self._semaphore)
            progress(self._context.ctypes.data)

    @property
    def active(self) -> bool:
        """Where it is False, both functions return at once and change nothing."""
        return bool(self._context[_ACTIVE])

    @active.setter
    def active(self, value: bool) -> None:
        self._context[_ACTIVE] = value

    def waiting(self) -> tuple[float, float]:
        """Seconds for which a plan has been waiting just now, and the longest that one has waited before."""
        since = int(self._context[_SINCE])
        now = time.clock_gettime_ns(1) if since else 0
        return (now - since) * 1e-9, int(self._context[_LONGEST]) * 1e-9

    def counted(self) -> tuple[float, float, int]:
        """Seconds that plans waited, seconds that blocks were under way, and the bytes of all blocks."""
        waited, under_way, nbytes = (int(self._context[i]) for i in (_WAITED, _UNDER_WAY, _BYTES))
        return waited * 1e-9, under_way * 1e-9, nbytes


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0

"""A plan in memory: everything that runs share. It never changes, so several may go on at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import final

import numpy as np

from onward.compile.spec import PlanCall, PlanRow, PlanSpec, PlanStep, Region
from onward.engine.packing import Packings, components, default_packings
from onward.engine.team import FOREIGN, Step, Steps, Team
from onward.engine.weights import Weight
from onward.engine.workspace import Workspace
from onward.graph import Array, RunBody
from onward.graph.foreign import keep_forever

__all__ = ["Plan", "PlanRow"]


@final
class Plan:
    """Everything needed to run a model at fixed input shapes.

    Args:
        spec: what it does.
        weights: state and weights by name. State is updated in place, so the caller then lets one run at a
            time use it.
        addresses: of the machine code of `spec.kernels`.
        seconds: what making it took, for reports.
        workspaces: runs at once; others wait.
        arenas: working memory that a plan of the same spec has had.
        run_body: runs the bodies of operators such as If; NumPy does by default.
        packings: where packed weights are kept for other plans.
    """

    def __init__(
        self,
        spec: PlanSpec,
        weights: Mapping[str, Weight],
        addresses: Sequence[int],
        seconds: Mapping[str, float] | None = None,
        *,
        workspaces: int = 1,
        arenas: Iterable[Array] = (),
        packings: Packings | None = None,
        run_body: RunBody | None = None,
    ) -> None:
        self.spec = spec
        self.run_body = run_body
        self.threads = spec.threads
        self.addresses = tuple(addresses)
        self.seconds = dict(seconds or {})
        self._weights = {m.name: weights[m.name] for m in spec.buffers if m.region is Region.SESSION}
        known = default_packings() if packings is None else packings
        self._packed = [(part, known.of(spec, part, weights)) for part in components(spec)]
        self.memories = self._memories()
        """The bytes of each buffer that runs share; None for those of a workspace."""
        self._limit = workspaces
        self._made = 0
        self._arenas = list(arenas)
        self._idle: list[Workspace] = []
        self._free = threading.Condition(threading.Lock())
        self._prepared = not self._packed

    @property
    def arena_bytes(self) -> int:
        """Size of the memory that a run's values share."""
        return self.spec.arena_bytes

    @property
    def rows(self) -> Sequence[PlanRow]:
        """The plan's calls in order."""
        return self.spec.rows

    def idle_arenas(self) -> list[Array]:
        """Working memory that nothing uses, taken from the plan: for another plan of the same spec."""
        with self._free:
            idle, self._idle = self._idle, []
            self._made -= len(idle)
        return [workspace.arena for workspace in idle]

    def run(self, inputs: Mapping[str, Array], team: Team | None) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: arrays of exactly the plan's shapes and dtypes.
            team: of the number of threads that the plan was made for; None: the calling thread alone.

        Returns:
            The outputs that are not state, as new arrays.
        """
        with self.workspace() as workspace:
            workspace.bind(inputs)
            self.prepare(workspace, team)
            return workspace.run(team)

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """Memory for one run; waits while as many runs as there may be go on."""
        workspace = self.take()
        try:
            yield workspace
        finally:
            self.give(workspace)

    def take(self) -> Workspace:
        """Memory for one run, to be given back with `give`; waits while as many as there may be are out."""
        with self._free:
            while not self._idle:
                if self._made < self._limit:
                    self._made += 1
                    arena = self._arenas.pop() if self._arenas else None
                    break
                self._free.wait()
            else:
                return self._idle.pop()
        try:
            return Workspace(self, arena)
        except BaseException:
            with self._free:
                self._made -= 1
                self._free.notify()
            raise

    def give(self, workspace: Workspace) -> None:
        """Say that a run is over."""
        workspace.release()
        if workspace.lost:
            keep_forever(workspace)
        with self._free:
            if workspace.lost:
                self._made -= 1
            else:
                self._idle.append(workspace)
            self._free.notify()

    def prepare(self, workspace: Workspace, team: Team | None) -> None:
        """Compute what depends on weights alone, unless that has been done; every run begins with it."""
        if self._prepared:
            return
        with ExitStack() as held:
            # in one order for all plans, so that none waits for another in a circle
            for packed in sorted({packed for _, packed in self._packed}, key=id):
                held.enter_context(packed.lock)
            missing = {packed: part for part, packed in self._packed if not packed.filled}
            positions = sorted(i for part in missing.values() for i in part.steps)
            steps = workspace.some(_waiting(self.spec.prologue, positions))
            if team is None:
                steps.run(self.threads)
            else:
                team.run(steps)
            for packed in missing:
                packed.filled = True
        self._prepared = True

    def time_calls(
        self,
        inputs: Mapping[str, Array],
        team: Team,
        rounds: int = 5,
        seconds: float = 0.002,
        clock: Callable[[], float] = time.perf_counter,
    ) -> list[float]:
        """Measure every call alone, in the plan's order, so that each finds the data that it has in a run.

        State holds nothing of use afterwards: a short call is repeated, with whatever it then updates; one of
        another library is made once a walk.

        Args:
            inputs: arrays of exactly the plan's shapes and dtypes.
            team: of the number of threads that the plan was made for.
            rounds: walks over the plan.
            seconds: a call that takes less is repeated to fill them.
            clock: gives seconds; the caller's processor time suits a team of one on a busy machine.

        Returns:
            For each row the least seconds of one call over the rounds.
        """
        with self.workspace() as workspace:
            workspace.bind(inputs)
            self.prepare(workspace, team)
            singles = [Step(int(k), int(a), int(flags)) for k, a, flags in workspace.steps.table]
            foreign = [bool(single.flags & FOREIGN) for single in singles]
            steps = [Steps([single]) for single in singles]
            counts = [1] * len(steps)
            best = [float("inf")] * len(steps)
            for turn in range(rounds + 1):
                for i, step in enumerate(steps):
                    started = clock()
                    team.run(step)
                    taken = clock() - started
                    if turn == 0 and not foreign[i]:
                        counts[i] = max(1, min(1000, int(seconds / max(taken, 1e-7))))
                        steps[i] = Steps([singles[i]] * counts[i])
                    elif turn:
                        best[i] = min(best[i], taken / counts[i])
        return best

    def _memories(self) -> list[Array | None]:
        found: list[Array | None] = []
        for memory in self.spec.buffers:
            match memory.region:
                case Region.SESSION:
                    found.append(self._weights[memory.name].array.reshape(-1).view(np.uint8))
                case Region.CONSTANT:
                    content = self.spec.constants[memory.offset].reshape(-1)
                    # strings are objects, which only NumPy kernels see
                    found.append(content if content.dtype.hasobject else content.view(np.uint8))
                case _:
                    found.append(None)
        for part, packed in self._packed:
            for buffer, offset in part.offsets.items():
                found[buffer] = packed.block[offset : offset + self.spec.buffers[buffer].nbytes]
        return found


def _waiting(prologue: Sequence[PlanStep], positions: Sequence[int]) -> list[PlanStep]:
    """Some of the prologue's calls, each of which waits for the one before.

    A call that threads need not wait after leaves that to a later one, which may be left out here.
    """
    steps = [prologue[i] for i in positions]
    if len(steps) == len(prologue):
        return steps
    return [replace(s, no_barrier=False) if isinstance(s, PlanCall) else s for s in steps]

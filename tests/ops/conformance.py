"""The ONNX project's whole suite in both engines, and the gradients: `make conformance`.

Prints what fails, grouped by reason; the exclusions and why; and at last

    operators interpreter N/M compiled N/M (native K, folded F, strings and ml S, others R) gradients N/G

M counts the cases of `onnx.backend.test` of all kinds on CPU, through `onward.backend`. Of the passes of the
compiled engine, K counts those in which every run had a plan with at least one compiled kernel and no NumPy
step; F those whose plans have nothing left to call: the results are inputs under another shape, or follow
from shapes and from contents that plans are made for (`Op.static_operands`), so that they were computed when
the plan was; S those with strings or with operators of `ai.onnx.ml` that have a NumPy step or no plan; R all
others: a NumPy step inside the plan, or no plan, so that the interpreter ran. `--list-numpy` names these. G
counts the operators of the default domain whose newest schema calls an input differentiable; one is counted
where every case of it in `tests.ops.gradient_checks` passes and there is one at least; above is said which
of the four checks it passed: central differences, onnxruntime on the emitted graph, second order, and torch
autograd, for which ONWARD_TORCH_PYTHON names an interpreter that has torch; and why one was left out.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import unittest
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx

from onward import backend

Engine: TypeAlias = Literal["interpreter", "compiled"]
ENGINES: tuple[Engine, ...] = ("interpreter", "compiled")

How: TypeAlias = Literal["", "native", "folded", "numpy", "interpreter"]
_WORST_FIRST: tuple[How, ...] = ("interpreter", "numpy", "native", "folded", "")

_SECONDS = 120
"""After which a case is said to hang."""

_CHUNK = 24


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        name: the case's.
        reason: why it failed; empty where it passed.
        how: what ran it in the compiled engine.
        steps: the NumPy steps of its plans, each with the reason.
    """

    name: str
    reason: str
    how: How = ""
    steps: tuple[str, ...] = ()
    checks: str = ""
    """Of a gradient: D central differences, O onnxruntime, S second order, T torch."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Of a gradient: the checks that the case does not have, and why."""

    @property
    def lacks_operator(self) -> bool:
        """Whether it failed for an operator, or a version of one, that is not there."""
        return self.reason.startswith("UnsupportedError: ") and "is not implemented" in self.reason


class EngineBackend:
    """`onward.backend` with an engine chosen, for the suite's runner; it remembers how the last model ran.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.how: How = ""
        self.steps: tuple[str, ...] = ()

    def supports_device(self, device: str) -> bool:
        """As `onward.backend`."""
        return backend.supports_device(device)

    def prepare(self, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> _Watched:
        """As `onward.backend`."""
        self.how, self.steps = "", ()
        return _Watched(self, backend.prepare(model, device, engine=self.engine, **kwargs))

    def ran(self, how: How, steps: tuple[str, ...]) -> None:
        """Remember a run; the worst one counts."""
        self.how = min(self.how, how, key=_WORST_FIRST.index)
        self.steps += steps


class _Watched:
    def __init__(self, owner: EngineBackend, rep: backend.OnwardRep) -> None:
        self._owner, self._rep = owner, rep

    def run(self, inputs: Any) -> tuple[Any, ...]:
        results = self._rep.run(inputs)
        if self._owner.engine == "compiled":
            self._owner.ran(*_how(self._rep, inputs))
        return results


def _how(rep: backend.OnwardRep, inputs: Any) -> tuple[How, tuple[str, ...]]:
    """What ran a model on inputs, and the NumPy steps."""
    given = rep.feed(inputs)
    if not all(isinstance(x, np.ndarray) for x in given.values()):
        return "interpreter", ("an input is no tensor",)
    shapes = {name: x.shape for name, x in given.items()}
    plan = rep.session._engine.plan(shapes, given)  # type: ignore[attr-defined]
    if plan is None:
        return "interpreter", ("a shape depends on data",)
    steps = tuple(f"{row.operators.partition(' ')[0]}: {row.reason}" for row in plan.rows if row.reason)
    return ("numpy" if steps else "native" if plan.rows else "folded"), steps


@functools.cache
def suite(engine: Engine) -> tuple[EngineBackend, dict[str, Callable[[Any], None]]]:
    """The suite's cases on CPU by name, each a function of a test case's instance, and what runs them."""
    os.environ.setdefault("ONNX_MODELS", os.path.join(tempfile.gettempdir(), f"onnx-models-{os.getuid()}"))
    runner_backend = EngineBackend(engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, while expected values are computed
        classes = _runner()(runner_backend).test_cases
    cases = {
        name.removesuffix("_cpu"): getattr(cls, name)
        for cls in classes.values()
        for name in dir(cls)
        if name.startswith("test_") and name.endswith("_cpu")
    }
    return runner_backend, cases


def _runner() -> Any:
    """The suite's runner, whose comparison fails on scalars in sequences whatever they are."""
    from onnx.backend.test.runner import Runner

    class Comparing(Runner):
        @classmethod
        def assert_similar_outputs(
            cls, ref_outputs: Any, outputs: Any, rtol: float, atol: float, model_dir: str | None = None
        ) -> None:
            if isinstance(ref_outputs, np.ndarray) and ref_outputs.ndim == 0:
                assert outputs.shape == ()
                ref_outputs, outputs = [ref_outputs], [outputs]
            super().assert_similar_outputs(ref_outputs, outputs, rtol, atol, model_dir)

    return Comparing


def run_case(engine: Engine, name: str) -> Outcome:
    """Run one case."""
    runner_backend, cases = suite(engine)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases[name](unittest.TestCase())
    except Exception as error:  # noqa: BLE001 whatever it is, it is the outcome
        return Outcome(name, _reason(error))
    return Outcome(name, "", runner_backend.how, runner_backend.steps)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, AssertionError):
        return "wrong: " + " ".join(lines)[:150]
    # the file's name is said first, then what is missing
    text = next((line for line in lines if line.startswith("node ")), " ".join(lines[:2]))
    text = text.partition(": operator ")[2] if ": operator " in text else text
    return f"{type(error).__name__}: {text}"[:160]


def _run_chunk(engine: Engine, names: Sequence[str]) -> list[Outcome]:
    def hangs(*_: object) -> None:
        raise TimeoutError(f"not done after {_SECONDS} seconds")

    signal.signal(signal.SIGALRM, hangs)
    outcomes = []
    for name in names:
        signal.alarm(_SECONDS)
        outcomes.append(run_case(engine, name))
        signal.alarm(0)
    return outcomes


_NOT_NAMED = "ONWARD_TORCH_PYTHON does not name an interpreter with torch"


def _gradient_chunk(positions: Sequence[int]) -> list[Outcome]:
    from tests.ops.gradient_checks import (
        check_differences,
        check_emitted,
        check_second,
        gradient_cases,
        without_ort,
        without_second,
        without_torch,
    )
    from tests.ops.torch_checks import ask_torch, check_torch, interpreter

    cases = [gradient_cases()[position] for position in positions]
    asked = [case for case in cases if interpreter() and not without_torch(case)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = dict(zip((case.id for case in asked), ask_torch(asked), strict=True)) if asked else {}
    outcomes = []
    for case in cases:
        why = {"O": without_ort(case), "S": without_second(case)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_emitted(case)
                check_differences(case)
                if not check_second(case):
                    why["S"] = why["S"] or "the gradient depends on nothing"
                answer = answers.get(case.id)
                if answer is None or not check_torch(case, answer):
                    why["T"] = without_torch(case) or (answer.refused if answer else _NOT_NAMED)
            left_out = tuple((letter, reason) for letter, reason in why.items() if reason)
            checks = "".join(letter for letter in "DOST" if letter not in dict(left_out))
            outcomes.append(Outcome(case.op_type, "", checks=checks, left_out=left_out))
        except Exception as error:  # noqa: BLE001 whatever it is, it is the outcome
            outcomes.append(Outcome(case.op_type, f"{case.id}: {_reason(error)}"))
    return outcomes


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _in_processes(
    task: Callable[..., list[Outcome]], arguments: Sequence[tuple[Any, ...]], workers: int
) -> list[Outcome]:
    """The outcomes of all chunks, run in forked processes; where one dies, its chunk is run one by one."""
    context = multiprocessing.get_context("fork")
    outcomes: list[Outcome] = []
    lost: list[tuple[Any, ...]] = []
    with ProcessPoolExecutor(workers, context) as pool:
        futures = [(pool.submit(task, *a), a) for a in arguments]
        for future, a in futures:
            try:
                outcomes += future.result()
            except BrokenProcessPool:
                lost.append(a)
    for *head, names in lost:
        for name in names:
            with ProcessPoolExecutor(1, context) as pool:
                try:
                    outcomes += pool.submit(task, *head, [name]).result()
                except BrokenProcessPool:
                    outcomes.append(Outcome(str(name), "the process died"))
    return outcomes


def _print_failures(title: str, outcomes: Sequence[Outcome], excluded: Mapping[str, str]) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.reason and outcome.name not in excluded:
            groups[outcome.reason].append(outcome.name)
    if not groups:
        return
    print(f"\n{title}: {sum(map(len, groups.values()))} fail")
    for reason, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = " ".join(n.removeprefix("test_") for n in names[:3]) + (" …" if len(names) > 3 else "")
        print(f"  {len(names):4d}  {reason}  ({shown})")


_APART = ("ai_onnx_ml", "string", "strnorm", "regex")


def _apart(name: str) -> bool:
    """Whether a case is about strings, or of `ai.onnx.ml`."""
    return any(part in name for part in _APART)


def _print_how(passed: Sequence[Outcome], *, listed: bool) -> str:
    """What ran the compiled passes, as the last line says it; if `listed`, what was not compiled."""
    slow = [o for o in passed if o.how in ("numpy", "interpreter")]
    apart = [o for o in slow if _apart(o.name)]
    counts = Counter(o.how for o in passed)
    if listed:
        groups: dict[str, list[str]] = defaultdict(list)
        for outcome in slow:
            if outcome not in apart:
                for step in dict.fromkeys(outcome.steps):
                    groups[step].append(outcome.name.removeprefix("test_"))
        print("\nnot compiled, strings and ml aside")
        for step, names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
            print(f"  {len(names):4d}  {step}  ({' '.join(names[:4])}{' …' if len(names) > 4 else ''})")
    return (
        f"native {counts['native']}, folded {counts['folded']}, strings and ml {len(apart)}, "
        f"others {len(slow) - len(apart)}"
    )


def _print_left_out(outcomes: Sequence[Outcome], passed: Mapping[str, set[str]]) -> None:
    """Why checks were left out: of all cases of an operator, and of some."""
    for whole, title in ((True, "checks that an operator lacks"), (False, "checks that some cases lack")):
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for outcome in outcomes:
            for letter, reason in outcome.left_out:
                if (letter not in passed[outcome.name]) == whole:
                    counts[letter, reason][outcome.name] += 1
        if counts:
            print(f"\n{title}, and why")
        for (letter, reason), names in sorted(counts.items()):
            shown = [name if whole else f"{name} {count}" for name, count in sorted(names.items())]
            every = whole and len(shown) == len(passed)
            print(f"  {letter}: {reason} ({'all' if every else ', '.join(shown)})")


def _run_gradients(only: str, workers: int) -> str:
    from tests.ops.exclusions import NO_GRADIENT
    from tests.ops.gradient_checks import differentiable_operators, gradient_cases

    wanted = set(differentiable_operators())
    cases = gradient_cases()
    positions = [
        i for i, case in enumerate(cases) if not case.domain and case.op_type in wanted and only in case.id
    ]
    outcomes = _in_processes(_gradient_chunk, [(chunk,) for chunk in _chunks(positions)], workers)
    failed = {o.name for o in outcomes if o.reason}
    checked = {o.name for o in outcomes} - failed
    if failed:
        print("\ngradients that fail")
        for outcome in outcomes:
            if outcome.reason:
                print(f"  {outcome.reason}")
    passed: dict[str, set[str]] = defaultdict(set)
    for outcome in outcomes:
        passed[outcome.name].update(outcome.checks)
    print(
        "\ngradients and what they passed: D central differences in float64, O onnxruntime on the graph that "
        "is written, S the gradient of the gradient against central differences, T torch autograd in float64"
    )
    groups: dict[str, list[str]] = defaultdict(list)
    for op_type in sorted(checked):
        groups[" ".join(sorted(passed[op_type]))].append(op_type)
    for letters, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"  {letters} ({len(names)}): {', '.join(names)}")
    _print_left_out([o for o in outcomes if not o.reason], passed)
    if not only and (missing := sorted(wanted - checked - failed)):
        print(f"\nno gradient ({len(missing)}): {', '.join(missing)}")
        for op_type in sorted(set(missing) & set(NO_GRADIENT)):
            print(f"  {op_type}: {NO_GRADIENT[op_type]}")
    return f"gradients {len(checked)}/{len(wanted)}"


def main() -> int:
    """Run everything, or what `--only` and `--skip` leave; print the tables and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--skip", choices=(*ENGINES, "gradients"), action="append", default=[])
    parser.add_argument(
        "--list-numpy", action="store_true", help="name the compiled passes that are not native"
    )
    options = parser.parse_args()
    from tests.ops.exclusions import NODE_CASES

    figures = []
    unexpected = False
    for engine in ENGINES:
        if engine in options.skip:
            continue
        names = [name for name in suite(engine)[1] if options.only in name]
        outcomes = _in_processes(_run_chunk, [(engine, c) for c in _chunks(names)], options.workers)
        _print_failures(engine, outcomes, NODE_CASES)
        passed = [outcome for outcome in outcomes if not outcome.reason]
        unexpected = unexpected or any(o.reason and o.name not in NODE_CASES for o in outcomes)
        if needless := [o.name for o in passed if o.name in NODE_CASES]:
            print(f"excluded, and passes: {' '.join(needless)}")
        figures.append(f"{engine} {len(passed)}/{len(outcomes)}")
        if engine == "compiled":
            figures[-1] += f" ({_print_how(passed, listed=options.list_numpy)})"
        suite.cache_clear()
    if "gradients" not in options.skip:
        figures.append(_run_gradients(options.only, options.workers))
    print("\nexcluded, and why")
    for name, reason in sorted(NODE_CASES.items()):
        print(f"  {name}: {reason}")
    print("operators " + " ".join(figures))
    return int(unexpected)


if __name__ == "__main__":
    sys.exit(main())

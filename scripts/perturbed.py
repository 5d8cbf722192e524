"""Runs the tests that depend on the machine as other machines would see them.

Another processor has other caches, vectors and cores, and so other blockings, other orders of sums, other
roundings. `make test-perturbed` runs the tests three times at each vector width, each time with every
constant of `onward.compile.codegen.tuning` moved in another way, on teams of 1 to 4 threads; widths that this
machine has not are left out, and named. `ONLY=2-8-3` runs one combination: seed, lanes, threads. Paths after
the options take the place of the tests that are run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from onward.compile.codegen.target import LANES, host_target

ROOT = Path(__file__).parents[1]
PATHS = ("compile", "engine", "train", "verify", "nn", "autodiff", "ops")


@dataclass(frozen=True)
class Combination:
    """What the environment says of the machine."""

    seed: int
    lanes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.seed}-{self.lanes}-{self.threads}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ONWARD_TUNING_SEED": str(self.seed),
            "ONWARD_LANES": str(self.lanes),
            "ONWARD_THREADS": str(self.threads),
        }


COMBINATIONS = tuple(
    Combination(*numbers)
    for numbers in (
        (1, 16, 1),
        (1, 8, 2),
        (1, 4, 3),
        (2, 16, 4),
        (2, 8, 1),
        (2, 4, 2),
        (7, 16, 2),
        (7, 8, 3),
        (7, 4, 4),
    )
)
"""Each seed at each width, each number of threads at two widths or more."""


def main() -> int:
    """Run pytest once for each combination; 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="SEED-LANES-THREADS", action="append", help="one combination")
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest (2)")
    parser.add_argument("paths", nargs="*", help="tests to run")
    options = parser.parse_args()
    wanted = [_parsed(text) for text in options.only] if options.only else list(COMBINATIONS)
    widest = _widest()
    paths = options.paths or [str(ROOT / "tests" / name) for name in PATHS]
    lines, failed = [], False
    for one in wanted:
        if one.lanes > widest:
            lines.append(f"{one!s:8}  left out: this machine has {widest} lanes at most")
            continue
        print(f"-- seed {one.seed}, {one.lanes} lanes, {one.threads} threads", flush=True)
        code, last = _pytest(one, paths, options.workers)
        failed |= code != 0
        lines.append(f"{one!s:8}  {'ok' if code == 0 else 'FAILED'}  {last}")
    print("\nseed-lanes-threads", *lines, sep="\n")
    return int(failed)


def _parsed(text: str) -> Combination:
    numbers = text.split("-")
    if len(numbers) != 3 or not all(n.isdigit() for n in numbers) or int(numbers[1]) not in LANES:
        raise SystemExit(f"--only {text}: give seed, lanes (16, 8 or 4) and threads, such as 2-8-3")
    return Combination(*map(int, numbers))


def _widest() -> int:
    """Lanes of this machine's widest vectors, whatever the environment says."""
    os.environ.pop("ONWARD_LANES", None)
    return host_target().lanes


def _pytest(one: Combination, paths: list[str], workers: int) -> tuple[int, str]:
    """The exit code, and the line that sums up."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header"]
    command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    with subprocess.Popen(
        [*command, *paths], cwd=ROOT, env={**os.environ, **one.environment}, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


if __name__ == "__main__":
    sys.exit(main())

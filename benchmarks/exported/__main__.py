"""Networks that torch exports, in Onward: gradients and plans checked, steps timed, a verdict for each goal.

    ONWARD_TORCH_PYTHON=… python -m benchmarks.exported [--only NAMES] [--check | --time] [--cpu] [--show]

ONWARD_TORCH_PYTHON names an interpreter with torch, onnxscript, transformers and timm. Exports are kept in
ONWARD_EXPORTS (default: a folder of the temporary one), results in benchmarks/results/exported.json, where
those of a network replace its old ones; so a run may be had in pieces. NAMES are architectures or
ARCHITECTURE.EXPORTER, separated by commas. Ends with 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.exported.agreement import EXACT, FORWARD, GRADIENTS, NETWORKS, check, export
from benchmarks.exported.timing import Ratio, inference_ratio, training_ratio
from benchmarks.suite.compare import Settings
from benchmarks.suite.peers import TorchProcess, torch_python
from benchmarks.suite.results import geometric_mean

RESULTS = Path(__file__).parents[1] / "results" / "exported.json"
TRAINING_EACH, TRAINING_MEAN, INFERENCE_MEAN = 0.75, 0.5, 0.9
"""Goals: of torch's time at most, the geometric mean of that, and that of onnxruntime's time."""

Rows = dict[str, dict[str, Any]]


def main() -> int:
    """Check and time the networks named, or all; show all results."""
    options = _options()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.show:
        folder = Path(os.environ.get("ONWARD_EXPORTS") or Path(tempfile.gettempdir()) / "onward-exports")
        for network, row in _measured(options, folder):
            rows[network] = {**rows.get(network, {}), **row}
            print(_line(network, rows[network]), flush=True)
            RESULTS.write_text(json.dumps({n: rows[n] for n in NETWORKS if n in rows}, indent=1) + "\n")
    else:
        print("\n".join(_line(network, row) for network, row in rows.items()))
    met = [_verdict(*goal) for goal in _goals(rows)]
    return int(not all(met))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.exported", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="networks, separated by commas")
    parser.add_argument("--check", action="store_true", help="gradients and plans alone")
    parser.add_argument("--time", action="store_true", help="times alone")
    parser.add_argument("--show", action="store_true", help="print what was measured before")
    parser.add_argument("--cpu", action="store_true", help="one thread, processor time: for a busy machine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="for one comparison")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side, at most")
    options = parser.parse_args()
    chosen = [n for n in NETWORKS if not options.only or {n, n.split(".")[0]} & set(options.only.split(","))]
    if not chosen:
        sys.exit(f"no network is named {options.only}; there are {', '.join(NETWORKS)}")
    if options.cpu:
        options.threads = 1
    options.networks = chosen
    return options


def _measured(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    settings = Settings(options.seconds, options.rounds)
    refused = export(options.networks, folder)
    python = torch_python()
    process = None if options.check or python is None else TorchProcess(python, options.threads)
    try:
        for network in options.networks:
            if network in refused:
                yield network, {"problems": [f"torch does not export it: {refused[network]}"]}
                continue
            row: dict[str, Any] = {}
            if not options.time:
                row |= asdict(check(network, folder / network))
            if not options.check:
                row |= {"threads": options.threads, "clock": "processor" if options.cpu else "wall"}
                given = (settings, options.threads, options.cpu)
                row["inference"] = asdict(inference_ratio(folder / network, *given))
                if process is not None:
                    row["training"] = asdict(training_ratio(network, folder / network, process, *given))
            yield network, row
    finally:
        if process is not None:
            process.close()


def _ratio(row: dict[str, Any], kind: str) -> float | None:
    return Ratio(**row[kind]).value if kind in row else None


def _line(network: str, row: dict[str, Any]) -> str:
    def error(name: str) -> str:
        return "-" if row.get(name) is None else f"{row[name]:.1e}"

    def time(kind: str) -> str:
        ratio = Ratio(**row[kind]) if kind in row else Ratio()
        if ratio.value is None:
            return f"{ratio.note or '-':24}"
        return f"{ratio.ours:7.2f} /{ratio.peer:7.2f} ms = {ratio.value:4.2f}"

    calls = row.get("calls", {})
    head = (
        f"{network:22} forward {error('forward'):8} gradients {error('gradients'):8} "
        f"in float64 {error('exact'):8} "
        f"calls {calls.get('inference', 0):3} {calls.get('training', 0):3}  "
        f"training {time('training')}  inference {time('inference')}"
    )
    return "\n".join([head, *(f"    {problem}" for problem in row.get("problems", ()))])


def _goals(rows: Rows) -> Iterator[tuple[str, bool]]:
    """What is asked for, with what was found; and whether that is enough."""
    checked = [row for row in rows.values() if "problems" in row]
    refused = [row for row in checked if row.get("gradients") is None]
    yield (
        f"{len(checked) - len(refused)} of {len(NETWORKS)} networks run and train",
        (len(checked) - len(refused) == len(NETWORKS)),
    )
    errors = [row["gradients"] for row in checked if row.get("gradients") is not None]
    forward = [row["forward"] for row in checked if row.get("forward") is not None]
    if errors:
        yield f"outputs within {FORWARD:g}: at most {max(forward):.1e}", max(forward) < FORWARD
        yield (
            f"gradients within {GRADIENTS:g} of autograd's: at most {max(errors):.1e}",
            max(errors) < GRADIENTS,
        )
    exact = [row["exact"] for row in checked if row.get("exact") is not None]
    if exact:
        yield f"in float64 within {EXACT:g}: at most {max(exact):.1e}", max(exact) < EXACT
    stepping = sum(any("NumPy" in p or "static plan" in p for p in row["problems"]) for row in checked)
    yield f"networks whose plans have NumPy steps or that have none: {stepping}", not stepping
    training = [r for row in rows.values() if (r := _ratio(row, "training")) is not None]
    inference = [r for row in rows.values() if (r := _ratio(row, "inference")) is not None]
    if training:
        over = sum(r > TRAINING_EACH for r in training)
        yield (
            f"training steps at most {TRAINING_EACH} of torch's: {len(training) - over} of {len(training)}, "
            f"largest {max(training):.2f}"
        ), not over  # fmt: skip
        mean = geometric_mean(training)
        yield f"their geometric mean at most {TRAINING_MEAN}: {mean:.2f}", mean <= TRAINING_MEAN
    if inference:
        mean = geometric_mean(inference)
        yield (
            f"inference at most {INFERENCE_MEAN} of onnxruntime's, geometric mean of {len(inference)}: "
            f"{mean:.2f}, largest {max(inference):.2f}"
        ), mean <= INFERENCE_MEAN  # fmt: skip


def _verdict(told: str, met: bool) -> bool:
    print(f"{'met   ' if met else 'MISSED'} {told}")
    return met


if __name__ == "__main__":
    raise SystemExit(main())

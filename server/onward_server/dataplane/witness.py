"""Checks as the witness makes them: several answered requests at once, of which only findings come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

from onward.errors import LimitError, OnwardError, UnsupportedError
from onward.graph import Array
from onward_server.dataplane.crosscheck import Comparison, compare
from onward_server.dataplane.executors import Executor
from onward_server.dataplane.texts import Texts
from onward_server.errors import ExecutionError, MemoryLimitError, RunTimeoutError
from onward_server.model_settings import CrossCheckSettings

__all__ = ["LIMITS", "Finding", "Pair", "checked", "located"]

LIMITS = (LimitError, MemoryLimitError, RunTimeoutError, UnsupportedError)
"""Errors of a witness that say nothing about the answer: it was not computed."""

Finding: TypeAlias = "Comparison | OnwardError"
"""What a check found; an error: the witness raised it."""


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """A request's inputs, and what was answered."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def checked(
    executor: Executor, pairs: Sequence[Pair], settings: CrossCheckSettings, *, is_reference: bool
) -> list[Finding]:
    """What the witness finds, one for each of the pairs.

    Args:
        executor: the witness.
        pairs: what to compute again.
        settings: tolerances.
        is_reference: whether the witness is onnxruntime.
    """
    findings: list[Finding] = []
    for pair in pairs:
        try:
            found = executor.run(pair.inputs, list(pair.outputs))
            ours, reference = (pair.outputs, found) if is_reference else (found, pair.outputs)
            findings.append(compare(ours, reference, settings))
        except OnwardError as error:
            findings.append(error)
        except MemoryError:
            findings.append(MemoryLimitError("the witness ran out of memory"))
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding too
            findings.append(ExecutionError(f"{type(error).__name__}: {error}"))
    return findings


def located(path: Path, inputs: Mapping[str, Array], settings: CrossCheckSettings) -> str:
    """Where the engines part when a request is computed again, node by node; empty: they agree.

    Args:
        path: the model's file.
        inputs: of the request.
        settings: tolerances.

    Raises:
        OnwardError: it cannot be found out, such as of a model with random nodes.
    """
    from onward.graph import spec_of
    from onward.model import load
    from onward.verify import Tolerance, compare

    names = ("float16", "bfloat16", "float32", "float64")
    bounds = {name: settings.tolerance_of(name) for name in names}
    tolerance = {
        name: Tolerance(bound.atol, bound.rtol) for name, bound in bounds.items() if bound is not None
    }
    model = load(path)
    texts = Texts.of(model.metadata_props, [spec_of(value) for value in model.graph.inputs])
    report = compare(path, inputs if texts is None else texts.encoded(inputs), tolerance=tolerance)
    return "" if report.passed else str(report.first_difference or report.failures[0])

"""Whole training runs: a configuration, `execute` with events and a cancel token, and what they leave behind.

    config = runs.RunConfig(model={"name": "lenet5"}, data={"spec": "digits"}, epochs=5)
    result = runs.execute(config, events=print)

Everything here is loaded when it is first used, so that a command line can show its options at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.runs.config import RunConfig, read_run, run_of, to_toml
    from onward.runs.conversion import Conversion, ConversionReport
    from onward.runs.drafts import Draft, draft
    from onward.runs.evaluation import Evaluation, EvaluationData, evaluate
    from onward.runs.events import (
        CheckpointWritten,
        ColumnsPrepared,
        DataRead,
        EpochEnded,
        Event,
        Exported,
        Finished,
        FoldMeasured,
        Measured,
        MetricsSoFar,
        Pruned,
        RanksTimed,
        Started,
        StepEnded,
        Warned,
    )
    from onward.runs.execution import CancelToken, RunResult, execute, find_learning_rate
    from onward.runs.measures import Measures, measure
    from onward.runs.preparation import Prepared
    from onward.runs.report import evaluation_chart
    from onward.runs.tuning import Choice, Range, Trial, TuneResult, search_space, tune

__all__ = [
    "CancelToken",
    "CheckpointWritten",
    "Choice",
    "ColumnsPrepared",
    "Conversion",
    "ConversionReport",
    "DataRead",
    "Draft",
    "EpochEnded",
    "Evaluation",
    "EvaluationData",
    "Event",
    "Exported",
    "Finished",
    "FoldMeasured",
    "Measured",
    "Measures",
    "MetricsSoFar",
    "Prepared",
    "Pruned",
    "Range",
    "RanksTimed",
    "RunConfig",
    "RunResult",
    "Started",
    "StepEnded",
    "Trial",
    "TuneResult",
    "Warned",
    "draft",
    "evaluate",
    "evaluation_chart",
    "execute",
    "find_learning_rate",
    "measure",
    "read_run",
    "run_of",
    "search_space",
    "to_toml",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("RunConfig", "read_run", "run_of", "to_toml"), "config"),
    **dict.fromkeys(("CancelToken", "RunResult", "execute", "find_learning_rate"), "execution"),
    **dict.fromkeys(("Measures", "measure"), "measures"),
    **dict.fromkeys(("Conversion", "ConversionReport"), "conversion"),
    **dict.fromkeys(("Evaluation", "EvaluationData", "evaluate"), "evaluation"),
    "evaluation_chart": "report",
    **dict.fromkeys(("Draft", "draft"), "drafts"),
    **dict.fromkeys(("Choice", "Range", "Trial", "TuneResult", "search_space", "tune"), "tuning"),
    "Prepared": "preparation",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'events')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

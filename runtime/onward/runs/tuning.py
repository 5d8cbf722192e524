"""Searches options of a run with Optuna: a study in a file, trials that are runs, the best one kept."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from pydantic import BaseModel

from onward.errors import ConfigError, StorageError, TrainingError
from onward.model import atomic_write
from onward.nn import zoo
from onward.runs.config import RunConfig, run_of, to_toml
from onward.runs.events import EpochEnded, Event
from onward.runs.execution import CancelToken, RunResult, execute
from onward.runs.options import Option

__all__ = ["Choice", "Range", "Trial", "TuneResult", "search_space", "tune"]

_STUDY = "onward"
_PRUNED = "pruned"
_RANGE = re.compile(r"^([^:|]+):([^:|]+)(?::(log))?$")
_LOWER = ("loss", "mae", "mse", "rmse")
_STARTUP = 4
"""Trials that are done to their ends before others are compared with them."""


@final
@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; `log`: drawn by their magnitude."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ConfigError(f"a range needs two numbers, the lower first, got {self.low}:{self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"a logarithmic range has to be above 0, got {self.low}:{self.high}")


@final
@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ConfigError(f"a choice needs two values or more, got {list(self.values)}")


Space: TypeAlias = "Mapping[str, Range | Choice]"


@final
@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        number: from 0.
        values: what it had, by dotted key.
        value: of the objective; None where the run did not come to its end.
        state: "complete"; "pruned", since others were better; "failed", since its loss was not finite, or it
            was interrupted; "running", in another process.
        epochs: finished.
        seconds: it took.
    """

    number: int
    values: Mapping[str, Any]
    value: float | None
    state: Literal["complete", "pruned", "failed", "running"]
    epochs: int
    seconds: float


@final
@dataclass(frozen=True)
class TuneResult:
    """A study.

    Attributes:
        objective: the figure that was made best.
        trials: all of them, in their order.
        best: the best; None where none came to its end.
        config: of the best run, as a file; its model is `model.onnx` beside it.
        cancelled: whether the search was told to stop.
    """

    objective: str
    trials: tuple[Trial, ...]
    best: Trial | None
    config: Path | None
    cancelled: bool


def search_space(texts: Mapping[str, Any], model: str) -> dict[str, Range | Choice]:
    """What to search, by dotted key.

    Args:
        texts: by option (`lr`, `batch-size`), dotted key (`optimizer.learning_rate`) or option of the network
            (`hidden`): `LOW:HIGH`, `LOW:HIGH:log`, `A|B|C`, or a list of values.
        model: the network.

    Raises:
        ConfigError: an unknown option, or a text of another form.
    """
    found: dict[str, Range | Choice] = {}
    for name, text in texts.items():
        key = _key_of(name, model)
        if key in found:
            raise ConfigError(f"search: {key} is there twice")
        found[key] = _space_of(name, text)
    if not found:
        raise ConfigError("search: nothing to search: say --search lr=1e-4:1e-1:log, or give [search]")
    return found


def tune(
    config: RunConfig,
    space: Space,
    *,
    folder: str | Path,
    trials: int = 20,
    storage: str | None = None,
    objective: str = "val_loss",
    direction: Literal["auto", "minimize", "maximize"] = "auto",
    prune: bool = True,
    events: Callable[[int, Event], None] | None = None,
    ended: Callable[[Trial], None] | None = None,
    cancel: CancelToken | None = None,
) -> TuneResult:
    """Search for the best values; a study that is there goes on.

    Trials are drawn by Optuna's TPE sampler, seeded by the run's seed. A trial whose figure is worse than the
    median of earlier ones at the same epoch ends early.

    Args:
        config: the run, but for what is searched.
        space: what is searched, see `search_space`.
        folder: for the study's file, and the best run's configuration and model.
        trials: of the whole study, those done before included.
        storage: Optuna's, such as `sqlite:///study.db`; by default `study.db` in the folder.
        objective: a figure of the history: the last epoch's, or with early stopping the best one's.
        direction: "auto": lower is better for names that end in loss, mae, mse or rmse.
        prune: end trials early.
        events: called with the trial's number and each event of its run.
        ended: called with each trial that ended.
        cancel: when it is cancelled the trial under way ends, and the study can go on later.

    Raises:
        ConfigError: Optuna is missing, the study there is of another search, or an option does not fit.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"folder {folder} cannot be made: {error.strerror}") from None
    lower = objective.endswith(_LOWER) if direction == "auto" else direction == "minimize"
    token = cancel if cancel is not None else CancelToken()
    place = storage if storage is not None else f"sqlite:///{folder / 'study.db'}"
    study = _opened(optuna, place, config.seed, lower=lower, prune=prune)
    _check_same(study, config, space, objective, lower, place)

    def run(trial: Any) -> float:
        own = _with_values(config, _drawn(trial, space))
        target = folder / f"trial-{trial.number}"
        own = own.model_copy(update={"output": target / "model.onnx", "overwrite": True})
        stop = CancelToken()

        def listen(event: Event) -> None:
            if events is not None:
                events(trial.number, event)
            if token.cancelled:
                stop.cancel(token.reason)
            if isinstance(event, EpochEnded):
                trial.set_user_attr("epochs", event.epoch)
                trial.report(_figure(event.row, objective), event.epoch)
                if trial.should_prune():
                    stop.cancel(_PRUNED)

        try:
            result = execute(own, events=listen, cancel=stop)
        except TrainingError as error:
            trial.set_user_attr("error", str(error)[:500])
            raise optuna.TrialPruned(str(error)) from None
        if result.finished.status == "cancelled":
            if stop.reason == _PRUNED:
                raise optuna.TrialPruned
            raise KeyboardInterrupt
        with atomic_write(target / "run.toml") as file:
            file.write(_record(own).encode())
        return _value(result, own, objective, lower)

    def after(_: Any, frozen: Any) -> None:
        _keep_best(study, folder)
        if ended is not None:
            ended(_trial(frozen))

    done = sum(t.state.is_finished() and not _interrupted(t) for t in study.trials)
    while done < trials and not token.cancelled:
        try:
            study.optimize(run, n_trials=1, callbacks=[after])
        except KeyboardInterrupt:
            token.cancel("interrupted")
        done += 1
    found = tuple(_trial(each) for each in study.trials)
    complete = [each for each in found if each.state == "complete"]
    best = (
        next((each for each in complete if each.number == study.best_trial.number), None)
        if complete
        else None
    )
    where = None if best is None else folder / f"trial-{best.number}" / "run.toml"
    return TuneResult(objective, found, best, where, token.cancelled)


def _record(config: RunConfig) -> str:
    """The run as a file, its output left open."""
    values = {key: value for key, value in config.chosen().items() if key not in ("output", "overwrite")}
    return to_toml(run_of(values), whole=False)


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise ConfigError("a search needs the extra onward[tune]: pip install 'onward[tune]'") from None


def _opened(optuna: Any, place: str, seed: int, *, lower: bool, prune: bool) -> Any:
    """The study in a storage, a new one if there is none; trials that a dead process left are closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            store = optuna.storages.RDBStorage(place, heartbeat_interval=30, grace_period=90)
            study = optuna.create_study(
                storage=store,
                study_name=_STUDY,
                direction="minimize" if lower else "maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(_STARTUP, 1) if prune else optuna.pruners.NopPruner(),
            )
        except Exception as error:
            raise StorageError(
                f"study {place} cannot be opened: {str(error).splitlines()[0][:300]}"
            ) from error
        optuna.storages.fail_stale_trials(study)
    # a study that goes on does not draw again what its first process drew
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=_STARTUP)
    return study


def _check_same(study: Any, config: RunConfig, space: Space, objective: str, lower: bool, place: str) -> None:
    """Refuse to go on with a study of another search."""
    record = {
        "configuration": {
            k: v for k, v in config.chosen().items() if k not in ("output", "overwrite", "search")
        },
        "search": {key: repr(each) for key, each in sorted(space.items())},
        "objective": [objective, lower],
    }
    text = json.dumps(record, sort_keys=True)
    known = study.user_attrs.get("onward")
    if known is None:
        study.set_user_attr("onward", text)
        return
    old = json.loads(known)
    for part, value in json.loads(text).items():
        if old.get(part) != value:
            raise ConfigError(
                f"study {place} is of another search: its {part} is {json.dumps(old.get(part))[:400]}; give "
                "another --folder, or the same options"
            )


def _key_of(name: str, model: str) -> str:
    own = name.replace("-", "_")
    for key, names in _options(RunConfig, ""):
        if name == key or own in names:
            return key
    known = [] if model not in zoo.names() else list(inspect.signature(getattr(zoo, model)).parameters)
    if name.startswith("model.options.") or own in known:
        return f"model.options.{own.removeprefix('model.options.')}"
    raise ConfigError(
        f"search: {name!r} is neither an option of `onward train` nor of the network {model} "
        f"({', '.join(known) or 'a file has none'})"
    )


def _options(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, set[str]]]:
    """Dotted keys, and the names of their options."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, f"{prefix}{name}.")
            continue
        option = next((m for m in field.metadata if isinstance(m, Option)), None)
        if option is not None:
            names = {option.name or name, *(short.lstrip("-") for short in option.short)}
            yield f"{prefix}{name}", {each.replace("-", "_") for each in names}


def _space_of(name: str, text: Any) -> Range | Choice:
    if isinstance(text, Sequence) and not isinstance(text, str):
        return Choice(tuple(text))
    if isinstance(text, str) and (found := _RANGE.match(text)):
        low, high = (_literal(part) for part in found.groups()[:2])
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high)):
            return Range(low, high, found[3] == "log")
    if isinstance(text, str) and "|" in text:
        return Choice(tuple(_literal(part) for part in text.split("|")))
    raise ConfigError(f"search: {name}={text!r} is none of LOW:HIGH, LOW:HIGH:log, A|B|C")


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:  # 1e-4 is a number of TOML, .5 and 1E3 are not
        return float(text)
    except ValueError:
        return text.strip()


def _drawn(trial: Any, space: Space) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, each in space.items():
        if isinstance(each, Choice):
            # Optuna stores plain values alone
            texts = [json.dumps(value) for value in each.values]
            values[key] = json.loads(trial.suggest_categorical(key, texts))
        elif each.whole:
            values[key] = trial.suggest_int(key, int(each.low), int(each.high), log=each.log)
        else:
            values[key] = trial.suggest_float(key, each.low, each.high, log=each.log)
    return values


def _with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    plain = config.chosen()
    plain.pop("search", None)
    for key, value in values.items():
        *path, last = key.split(".")
        table = plain
        for part in path:
            table = table.setdefault(part, {})
        table[last] = _fitting(config.model.name, last, value) if path == ["model", "options"] else value
    return run_of(plain, "search")


def _fitting(model: str, option: str, value: Any) -> Any:
    """A list of one where the network's option is a sequence."""
    takes = inspect.signature(getattr(zoo, model)).parameters
    default = takes[option].default if option in takes else None
    return [value] if isinstance(default, list | tuple) and not isinstance(value, list) else value


def _figure(row: Mapping[str, float], objective: str) -> float:
    if objective not in row:
        raise ConfigError(
            f"search: there is no figure {objective!r} to make best; there are "
            f"{', '.join(name for name in row if name not in ('epoch', 'learning_rate'))}"
        )
    return float(row[objective])


def _value(result: RunResult, config: RunConfig, objective: str, lower: bool) -> float:
    rows = [_figure(row, objective) for row in result.history.rows]
    if config.early_stopping.patience is None:
        return rows[-1]
    numbers = [value for value in rows if not math.isnan(value)] or [math.nan]
    return min(numbers) if lower else max(numbers)


def _keep_best(study: Any, folder: Path) -> None:
    """Remove the models of trials that are not the best."""
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    best = study.best_trial.number if complete else None
    for each in study.trials:
        if each.number != best and each.state.is_finished():
            (folder / f"trial-{each.number}" / "model.onnx").unlink(missing_ok=True)


def _interrupted(trial: Any) -> bool:
    return trial.state.name == "FAIL"


def _trial(frozen: Any) -> Trial:
    states: dict[str, Literal["complete", "pruned", "failed", "running"]]
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = "failed" if "error" in frozen.user_attrs else states.get(frozen.state.name, "running")
    values = {
        key: json.loads(value) if isinstance(value, str) else value for key, value in frozen.params.items()
    }
    seconds = 0.0 if frozen.duration is None else frozen.duration.total_seconds()
    value = frozen.value if state == "complete" else None
    return Trial(frozen.number, values, value, state, int(frozen.user_attrs.get("epochs", 0)), seconds)

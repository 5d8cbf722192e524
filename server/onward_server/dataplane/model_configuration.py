"""Settings of a model as Triton's model configuration has them, and its parameters for what is ours.

What `ModelConfig` answers can be changed and given back to a load call. A field that would have no effect is
refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from onward_server.errors import RequestError
from onward_server.model_settings import CrossCheckSettings, ModelSettings
from onward_server.settings_files import problems

__all__ = ["parameters_of", "settings_from"]

_DESCRIBED = frozenset(
    (
        *("name", "platform", "backend", "input", "output", "default_model_filename", "metric_tags"),
        *("runtime", "model_transaction_policy", "optimization"),
    )
)
"""Fields that describe the model, or its file for other engines."""

_REASON = "engine.reason"
_TOLERANCE = "cross_check.tolerance."
_PARAMETERS = (
    *("fallback", "threads", "queue_size", "run_timeout", "in_process", "default_priority"),
    *("response_cache", "labels"),
)
_CHECKS = ("policy", "rate", "share", "on_mismatch", "shadow_queue")


def parameters_of(
    settings: ModelSettings, check: CrossCheckSettings, engine: str, reason: str
) -> dict[str, str]:
    """The parameters of a model's configuration: what Triton's fields do not hold.

    Args:
        settings: of the model, the server's filled in.
        check: of its cross-check.
        engine: that answers.
        reason: why that is not the engine that was asked for; else empty.
    """
    found: dict[str, object] = {"engine": engine}
    if reason:
        found[_REASON] = reason
    found |= {name: getattr(settings, name) for name in _PARAMETERS}
    found |= {f"cross_check.{name}": getattr(check, name) for name in _CHECKS}
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        tolerance = check.tolerance_of(dtype)
        if tolerance is not None:
            found[_TOLERANCE + dtype] = f"rtol={tolerance.rtol}, atol={tolerance.atol}"
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in found.items()
        if value is not None
    }


def settings_from(text: str) -> ModelSettings:
    """The settings in a model configuration, Triton's JSON with fields of a `config.toml` beside its own.

    Raises:
        RequestError: names the field.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("parameters['config'] is not JSON") from None
    if not isinstance(given, dict):
        raise RequestError("parameters['config'] is not a JSON object")
    ours: dict[str, Any] = {}
    for key, value in given.items():
        if key in _DESCRIBED:
            continue
        try:
            if key in _FIELDS:
                _FIELDS[key](value, ours)
            else:
                ours[key] = value
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            raise RequestError(f"parameters['config']: {key} has an unexpected form") from None
    largest = ours.pop("max_batch_size", 0)
    delay = ours.pop("dynamic_batching", None)
    if delay is not None and largest > 1:
        ours["batching"] = {"max_batch": largest, **delay}
    runs = ours.pop("model_warmup", ())
    if runs:
        ours["warm_up"] = _warm_up(runs, largest)
    try:
        return ModelSettings.model_validate(ours)
    except ValidationError as error:
        raise RequestError(f"parameters['config']: {problems(error, ModelSettings)}") from None


def _refuse(where: str, rest: Mapping[str, Any]) -> None:
    """Refuse what has a value and would have no effect."""
    for name, value in rest.items():
        if value not in (None, "", "0", 0, False, [], {}):
            raise RequestError(f"parameters['config']: {where}.{name} is not supported")


def _max_batch_size(value: Any, ours: dict[str, Any]) -> None:
    ours["max_batch_size"] = int(value)


def _dynamic_batching(value: Any, ours: dict[str, Any]) -> None:
    rest = dict(value)
    ours["dynamic_batching"] = {
        "preferred": tuple(int(size) for size in rest.pop("preferred_batch_size", None) or ()),
        "max_delay_ms": int(rest.pop("max_queue_delay_microseconds", None) or 0) / 1e3,
    }
    # answers are not put in order, and any number is a priority
    for name in ("preserve_ordering", "priority_levels"):
        rest.pop(name, None)
    priority = int(rest.pop("default_priority_level", None) or 0)
    if priority:
        ours["default_priority"] = priority
    queue = dict(rest.pop("default_queue_policy", None) or {})
    size = int(queue.pop("max_queue_size", None) or 0)
    if size:
        ours["queue_size"] = size
    if queue.get("timeout_action") in ("REJECT", 0):
        # what is late is always refused
        queue.pop("timeout_action")
    queue.pop("allow_timeout_override", None)
    _refuse("dynamic_batching.default_queue_policy", queue)
    _refuse("dynamic_batching", rest)


def _instance_group(value: Any, ours: dict[str, Any]) -> None:
    if any(group.get("kind") in ("KIND_GPU", 1) for group in value):
        raise RequestError("parameters['config']: instance_group: there is no GPU; use KIND_CPU")
    ours["instances"] = sum(int(group.get("count") or 1) for group in value) or 1


def _version_policy(value: Any, ours: dict[str, Any]) -> None:
    policy: dict[str, Any] = {}
    if "latest" in value:
        policy["latest"] = int(value["latest"].get("num_versions") or 1)
    elif "specific" in value:
        policy["specific"] = tuple(int(version) for version in value["specific"]["versions"])
    ours["versions"] = policy


def _response_cache(value: Any, ours: dict[str, Any]) -> None:
    ours["response_cache"] = value.get("enable", False) if isinstance(value, dict) else value


def _model_warmup(value: Any, ours: dict[str, Any]) -> None:
    ours["model_warmup"] = list(value)


def _warm_up(runs: list[Any], largest: int) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Shapes of runs; where requests are joined, Triton's dims are without rows: those are `batch_size`."""
    found = []
    try:
        for run in runs:
            rows = int(run.get("batch_size") or 0) if largest else 0
            before = (rows,) if rows else ()
            found.append({name: (*before, *map(int, entry["dims"])) for name, entry in run["inputs"].items()})
    except (TypeError, ValueError, KeyError, AttributeError):
        raise RequestError("parameters['config']: model_warmup has an unexpected form") from None
    return tuple(found)


def _parameters(value: Any, ours: dict[str, Any]) -> None:
    texts = {
        name: entry["string_value"] if isinstance(entry, dict) else entry for name, entry in value.items()
    }
    if texts.pop(_REASON, None) is not None:
        # another engine answers than the one that was asked for
        texts.pop("engine", None)
    for name, text in texts.items():
        if name.startswith(_TOLERANCE):
            bounds = dict(part.strip().split("=") for part in text.split(","))
            tolerance = ours.setdefault("cross_check", {}).setdefault("tolerance", {})
            tolerance[name.removeprefix(_TOLERANCE)] = bounds
        elif name.startswith("cross_check."):
            ours.setdefault("cross_check", {})[name.removeprefix("cross_check.")] = text
        else:
            ours[name] = text


_FIELDS: Mapping[str, Callable[[Any, dict[str, Any]], None]] = {
    "max_batch_size": _max_batch_size,
    "dynamic_batching": _dynamic_batching,
    "instance_group": _instance_group,
    "version_policy": _version_policy,
    "response_cache": _response_cache,
    "model_warmup": _model_warmup,
    "parameters": _parameters,
}
"""What Triton's fields are in ours."""

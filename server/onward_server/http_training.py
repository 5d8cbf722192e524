"""Training jobs over HTTP: the calls of the gRPC service as JSON, for the page and for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias, final
from urllib.parse import urlsplit

import numpy as np
from aiohttp import web

from onward.graph import Array
from onward_protos.tensors import DATATYPES
from onward_server.access import Need
from onward_server.errors import PermissionDeniedError, RequestError
from onward_server.http_convert import json_object
from onward_server.training import Job, JobEvent, LineageRecord, Start, TrainingService
from onward_server.training.promotion import Evaluate, Promote
from onward_server.training.requests import configuration_of

__all__ = ["Route", "training_routes"]

Route: TypeAlias = tuple[str, str, Need, Callable[[web.Request], Awaitable[web.StreamResponse]]]
"""Method, path, what a caller needs, handler."""

_JOB = "/v1/training/jobs/{id:[^/]+}"
_MODEL = "/v1/training/models/{name:[^/]+}"
_MAX_WAIT = 60.0


def training_routes(service: TrainingService) -> list[Route]:
    """What the HTTP port answers beside the protocol's paths."""
    calls = _Training(service)
    return [
        ("POST", "/v1/training/jobs", "train", calls.start),
        ("GET", "/v1/training/jobs", "read", calls.list),
        ("GET", _JOB, "read", calls.get),
        ("GET", f"{_JOB}/events", "read", calls.events),
        ("POST", f"{_JOB}/cancel", "train", calls.cancel),
        ("POST", f"{_JOB}/resume", "train", calls.resume),
        ("POST", f"{_JOB}/promote", "manage", calls.promote),
        ("POST", "/v1/training/evaluate", "train", calls.evaluate),
        ("POST", f"{_MODEL}/rollback", "manage", calls.rollback),
        ("GET", f"{_MODEL}/lineage", "read", calls.lineage),
    ]


@final
class _Training:
    def __init__(self, service: TrainingService) -> None:
        self._service = service

    async def start(self, request: web.Request) -> web.StreamResponse:
        kinds = {
            "configuration": dict,
            "toml": str,
            "model": str,
            "version": str,
            "title": str,
            "batches": list,
        }
        body = await _body(request, kinds)
        if ("configuration" in body) == ("toml" in body):
            raise RequestError("give configuration, an object, or toml, a text")
        configuration = configuration_of(body["toml"], "toml") if "toml" in body else body["configuration"]
        start = Start(configuration, body.get("model", ""), body.get("version", ""), body.get("title", ""))
        batches = _batches(body["batches"]) if "batches" in body else None
        return _json(_job(await self._service.start(start, batches)))

    async def list(self, request: web.Request) -> web.StreamResponse:
        state, limit = request.query.get("state", ""), _number(request, "limit", 100)
        return _json({"jobs": list(map(_job, self._service.jobs(state, int(limit))))})

    async def get(self, request: web.Request) -> web.StreamResponse:
        return _json(_job(self._service.get(request.match_info["id"])))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Events after `after`; `wait`: those that come within so many seconds; `follow`: to the end."""
        identity, after = request.match_info["id"], int(_number(request, "after", 0))
        if request.query.get("follow", "") not in ("", "0", "false"):
            self._service.get(identity)
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            async for event in self._service.watch(identity, after):
                await response.write(json.dumps(_event(event)).encode() + b"\n")
            await response.write_eof()
            return response
        wait = min(_number(request, "wait", 0), _MAX_WAIT)
        found = await self._service.events(identity, after, wait)
        return _json({"events": list(map(_event, found)), "job": _job(self._service.get(identity))})

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        await _body(request, {})
        return _json(_job(await self._service.cancel(request.match_info["id"])))

    async def resume(self, request: web.Request) -> web.StreamResponse:
        await _body(request, {})
        return _json(_job(await self._service.resume(request.match_info["id"])))

    async def evaluate(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, dict.fromkeys(("id", "model", "version", "data", "part"), str))
        found = await self._service.promotions.evaluate(
            Evaluate(
                body.get("id", ""),
                body.get("model", ""),
                body.get("version", ""),
                body.get("data", ""),
                body.get("part", "") or "test",
            )
        )
        check = {name: found[name] for name in ("passed", "max_absolute_error", "difference")}
        return _json({**found["measures"], "cross_check": check})

    async def promote(self, request: web.Request) -> web.StreamResponse:
        kinds = {"model": str, "at_least": dict, "at_most": dict, "allow_other_interface": bool}
        body = await _body(request, kinds)
        found = await self._service.promotions.promote(
            Promote(
                request.match_info["id"],
                body.get("model", ""),
                _bounds(body, "at_least"),
                _bounds(body, "at_most"),
                body.get("allow_other_interface", False),
            )
        )
        return _json(_lineage(found))

    async def rollback(self, request: web.Request) -> web.StreamResponse:
        await _body(request, {})
        name = request.match_info["name"]
        withdrawn, serving = await self._service.promotions.rollback(name)
        return _json({"model": name, "withdrawn": str(withdrawn), "serving": str(serving)})

    async def lineage(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        found = await self._service.promotions.lineage(name, request.query.get("version", ""))
        return _json({"versions": list(map(_lineage, found))})


async def _body(request: web.Request, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The body's fields, each of its kind.

    A page of another origin may make a browser send a request, but not in its user's name: it is refused.
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise PermissionDeniedError("pages of other origins may not change anything here")
    data = await request.read()
    if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity", "gzip", "deflate"):
        raise RequestError("Content-Encoding: use gzip or deflate")
    body = json_object(data) if data.strip() else {}
    for name, value in body.items():
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise RequestError(f"unknown field {name[:128]!r}; the fields are {known}")
        if not isinstance(value, kinds[name]):
            raise RequestError(f"{name} is not of type {_JSON_NAMES[kinds[name]]}")
    return body


_JSON_NAMES = {dict: "object", str: "string", list: "array", bool: "boolean"}


def _bounds(body: Mapping[str, Any], name: str) -> dict[str, float]:
    found = body.get(name, {})
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name}: {key[:64]!r} is not a number")
    return {key: float(value) for key, value in found.items()}


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not 0 <= value < 2**53:
        raise RequestError(f"{name} is {text[:32]!r}; give a number of at least 0")
    return value


async def _batches(batches: list[Any]) -> AsyncIterator[dict[str, Array]]:
    for batch in batches:
        if not isinstance(batch, dict):
            raise RequestError("batches: give objects of tensors by name")
        yield {name: _tensor(name, value) for name, value in batch.items()}


def _tensor(name: str, value: Any) -> Array:
    if not isinstance(value, dict) or set(value) != {"datatype", "shape", "data"}:
        raise RequestError(f"tensor {name[:128]!r}: give datatype, shape and data")
    datatype, shape = value["datatype"], value["shape"]
    if not isinstance(datatype, str) or datatype not in DATATYPES or datatype in ("BYTES", "BF16"):
        raise RequestError(f"tensor {name[:128]!r}: {str(datatype)[:32]!r} is no type of a sample")
    if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise RequestError(f"tensor {name[:128]!r}: shape is no list of whole numbers")
    try:
        with np.errstate(over="ignore"):
            return np.asarray(value["data"], DATATYPES[datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(f"tensor {name[:128]!r}: data are not {datatype} of shape {shape[:8]}") from None


def _job(job: Job) -> dict[str, Any]:
    fields = asdict(job)
    for name in ("number", "url", "fetched"):
        del fields[name]
    fields["parent_version"] = str(job.parent_version or "")
    return fields


def _event(event: JobEvent) -> dict[str, Any]:
    return asdict(event)


def _lineage(entry: LineageRecord) -> dict[str, Any]:
    fields = asdict(entry)
    check = {"passed": True, "max_absolute_error": fields.pop("max_absolute_error")}
    versions = {"version": str(entry.version), "parent_version": str(entry.parent_version or "")}
    return {**fields, **versions, "cross_check": check}


def _json(value: Any) -> web.Response:
    return web.Response(text=json.dumps(_finite(value)), content_type="application/json")


def _finite(value: Any) -> Any:
    """Numbers that JSON lacks become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value

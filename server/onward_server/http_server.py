"""The HTTP port: the protocol's REST form, metrics and health, over the same data plane as gRPC."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias, final

from aiohttp import http_exceptions, web
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict

from onward.errors import ConfigError, OnwardError, UnsupportedError
from onward_server.access import CHANGES, AccessLog, Need, authorize, request_id, trace_id
from onward_server.dataplane import DataPlane
from onward_server.dataplane.overrides import override_from
from onward_server.errors import ModelNotFoundError, ModelUnavailableError, OverloadedError, RequestError
from onward_server.grpc_convert import check_statistics, infer_statistics, model_config, model_metadata
from onward_server.http_convert import infer_request, infer_response, json_object, repository_parameters
from onward_server.http_training import training_routes
from onward_server.metrics import exposition
from onward_server.server_metadata import extensions, server_version
from onward_server.settings import host_and_port
from onward_server.statuses import public_reason, public_text, status_of
from onward_server.tls import FollowedContext
from onward_server.training import TrainingService

__all__ = ["HttpServer"]

_LOG = logging.getLogger(__name__)
_HEADER_LENGTH = "Inference-Header-Content-Length"
_LARGE = 64 << 10
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_PATTERN = re.compile(r"\{(\w+):[^}]*\}")

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_MODEL = r"/v2/models/{name:[^/]+}"
_MEMORY = "/v2/systemsharedmemory"
_MEMORY_REGION = _MEMORY + "/region/{name:[^/]+}"
_VERSION = _MODEL + r"/versions/{version:[^/]+}"


_MALFORMED = (http_exceptions.HttpProcessingError, web.RequestPayloadError)


@final
class _Malformed(logging.Filter):
    """Leaves out what aiohttp logs, with a traceback, of requests that are not HTTP."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (*_MALFORMED, ConnectionError))


_NO_HTTP = _Malformed()


@final
class HttpServer:
    """Answers on `http_listen`: the protocol's paths, and those of training jobs.

    Attributes:
        ready: what health and readiness say, beside the data plane.
        address: what a client connects to, with the port that was bound.
    """

    def __init__(self, plane: DataPlane, log: AccessLog, training: TrainingService | None = None) -> None:
        self.ready = True
        self.address = ""
        self._plane = plane
        self._log = log
        self._training = training
        self._further = [] if training is None else training_routes(training)
        self._runner: web.AppRunner | None = None
        self._tls: FollowedContext | None = None

    async def start(self) -> None:
        """Bind and answer.

        Raises:
            ConfigError: the address cannot be bound, or the certificate cannot be used.
        """
        settings = self._plane.settings
        listen = settings.http_listen
        host, wanted = host_and_port(listen)
        if settings.tls is not None:
            chosen = settings.tls
            self._tls = FollowedContext(lambda: self._plane.settings.tls or chosen, "http/1.1")
        logging.getLogger("aiohttp.server").addFilter(_NO_HTTP)
        application = web.Application(client_max_size=settings.max_message_bytes)
        for method, path, need, handler in self._routes():
            answer = self._guarded(path, need, handler)
            application.router.add_route(method, path, answer)
            if method == "GET" and need == "nothing":
                # load balancers ask with HEAD; an answer to it leaves its body out by itself
                application.router.add_route("HEAD", path, answer)
        application.router.add_route("*", "/{path:.*}", self._guarded("", "nothing", self._unknown))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=settings.limits.idle_seconds,
            max_line_size=8190,
            max_field_size=settings.limits.metadata_bytes,
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner,
            host or None,
            wanted,
            ssl_context=None if self._tls is None else self._tls.context,
        )
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"http_listen {listen!r}: {error.strerror or error}") from error
        port = self._runner.addresses[0][1]
        self.address = f"{listen.rpartition(':')[0]}:{port}"

    def follow(self, *, again: bool = False) -> None:
        """Read the certificates again where they have changed, or `again`."""
        if self._tls is not None:
            self._tls.follow(again=again)

    async def stop(self, grace: float) -> None:
        """Close, after at most `grace` seconds for answers that are being written."""
        if self._runner is not None:
            await self._runner.shutdown()
            try:
                await asyncio.wait_for(self._runner.cleanup(), grace + 1.0)
            except TimeoutError:
                _LOG.warning("connections of the HTTP port were cut")

    def _routes(self) -> list[tuple[str, str, Need, _Handler]]:
        routes: list[tuple[str, str, Need, _Handler]] = [
            ("GET", "/", "nothing", _page),
            ("GET", "/health", "nothing", self._health_ready),
            ("GET", "/v2/health/live", "nothing", self._health_live),
            ("GET", "/v2/health/ready", "nothing", self._health_ready),
            ("GET", "/metrics", "nothing", self._metrics),
            ("GET", "/v2", "read", self._server),
            ("GET", "/v2/models/stats", "read", self._statistics),
            ("GET", "/v2/cross_checks", "read", self._cross_checks),
            ("POST", "/v2/repository/index", "read", self._index),
            ("POST", "/v2/repository/models/{name:[^/]+}/load", "manage", self._load),
            ("POST", "/v2/repository/models/{name:[^/]+}/unload", "manage", self._unload),
            ("GET", "/v2/logging", "read", self._log_settings),
            ("POST", "/v2/logging", "manage", self._log_settings),
            ("GET", "/v2/trace/setting", "read", self._trace_settings),
            ("POST", "/v2/trace/setting", "manage", self._trace_settings),
            ("GET", f"{_MODEL}/trace/setting", "read", self._trace_settings),
            ("POST", f"{_MODEL}/trace/setting", "manage", self._trace_settings),
            ("GET", f"{_MEMORY}/status", "read", self._memory_status),
            ("GET", f"{_MEMORY_REGION}/status", "read", self._memory_status),
            ("POST", f"{_MEMORY_REGION}/register", "manage", self._memory_register),
            ("POST", f"{_MEMORY_REGION}/unregister", "manage", self._memory_unregister),
            ("POST", f"{_MEMORY}/unregister", "manage", self._memory_unregister),
            ("GET", "/v2/", "read", self._server),
            ("*", "/v2/cudasharedmemory/{rest:.*}", "read", self._no_cuda),
        ]
        for base in (_MODEL, _VERSION):
            routes += [
                ("GET", base, "read", self._metadata),
                ("GET", f"{base}/ready", "nothing", self._model_ready),
                ("GET", f"{base}/config", "read", self._config),
                ("GET", f"{base}/stats", "read", self._statistics),
                ("POST", f"{base}/infer", "predict", self._infer),
            ]
        return [*routes, *self._further]

    def _guarded(self, path: str, need: Need, handler: _Handler) -> _Handler:
        named = _PATTERN.sub(r"{\1}", path)

        async def answer(request: web.Request) -> web.StreamResponse:
            start = time.perf_counter()
            key = text = ""
            headers = {name.lower(): value for name, value in request.headers.items()}
            identity = request_id(headers.get("x-request-id", ""))
            try:
                self._check_connections()
                key = authorize(self._plane.settings.keys, headers, need)
                response = await handler(request)
            except OnwardError as error:
                status = status_of(error)[1]
                if status == 500:
                    _LOG.error("%s failed (request %s): %s", request.path, identity, error)
                text = public_text(error)
                response = _error(status, text)
                if isinstance(error, OverloadedError):
                    response.force_close()
            except web.HTTPRequestEntityTooLarge:
                text = f"the body is larger than {self._plane.settings.max_message_bytes} bytes"
                response = _error(413, text)
            except _MALFORMED:
                text = "the body is not encoded as its Content-Encoding says"
                response = _error(400, text)
            except (web.HTTPException, ConnectionError):
                raise
            except Exception:  # noqa: BLE001 - the last line of defence of a request
                _LOG.exception("%s failed (request %s)", request.path, identity)
                text = f"internal error; the server's log has the details (request {identity})"
                response = _error(500, text)
            response.headers["x-request-id"] = identity
            response.headers["Server"] = "onward"
            if self._log.takes(str(response.status), always=need in CHANGES):
                self._log.write(
                    transport="http",
                    call=f"{request.method} {named or request.path[:64]}",
                    code=str(response.status),
                    start=start,
                    identity=identity,
                    trace_id=trace_id(headers),
                    key=key,
                    subject="/".join(request.match_info.values())[:128] if named else "",
                    text=text,
                )
            return response

        return answer

    def _check_connections(self) -> None:
        limit = self._plane.settings.limits.connections
        server = None if self._runner is None else self._runner.server
        if server is not None and len(server.connections) > limit:
            raise OverloadedError(f"more than {limit} connections are open; try later")

    async def _body(self, request: web.Request) -> bytes:
        """The body, without its Content-Encoding, within the bound on messages."""
        data = await request.read()
        coding = request.headers.get("Content-Encoding", "identity").lower()
        if coding in ("", "identity") or not data:
            return data
        # aiohttp takes gzip and deflate off while it reads and counts; anything else it leaves
        if coding in ("gzip", "deflate"):
            return data
        raise RequestError(f"Content-Encoding {coding[:32]!r} is not supported; use gzip or deflate")

    async def _health_live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _health_ready(self, request: web.Request) -> web.Response:
        ready = self.ready and self._plane.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=exposition(self._plane, self._training),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _server(self, request: web.Request) -> web.Response:
        return _json(
            {
                "name": "onward",
                "version": server_version(),
                "extensions": extensions(self._plane.settings),
            }
        )

    async def _metadata(self, request: web.Request) -> web.Response:
        model = self._plane.model(*_model(request))
        message = model_metadata(model, self._plane.versions(model.name))
        return _json(_plain(message))

    async def _model_ready(self, request: web.Request) -> web.Response:
        try:
            self._plane.model(*_model(request))
        except (ModelNotFoundError, ModelUnavailableError) as error:
            return _error(400 if isinstance(error, ModelNotFoundError) else 503, public_text(error))
        ready = self._plane.ready and self.ready
        return _json({"ready": ready}, 200 if ready else 503)

    async def _config(self, request: web.Request) -> web.Response:
        model = self._plane.model(*_model(request))
        message = model_config(model, self._plane.versions(model.name))
        return _json(_plain(message))

    async def _statistics(self, request: web.Request) -> web.Response:
        models = self._plane.select(*_model(request))
        return _json({"model_stats": [_plain(infer_statistics(model)) for model in models]})

    async def _cross_checks(self, request: web.Request) -> web.Response:
        return _json({"statistics": [_plain(check_statistics(m)) for m in self._plane.select()]})

    async def _index(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        ready = json_object(body).get("ready", False) if body.strip() else False
        if not isinstance(ready, bool):
            raise RequestError("ready is not true or false")
        return _json(
            [
                {"name": name, "version": str(version or ""), "state": state, "reason": public_reason(reason)}
                for name, version, state, reason in self._plane.states(ready_only=ready)
            ]
        )

    async def _load(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        header = json_object(body) if body.strip() else {}
        await self._plane.load(_model(request)[0], override_from(repository_parameters(header)))
        return _json({})

    async def _unload(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        if body.strip():
            json_object(body)
        await self._plane.unload(_model(request)[0])
        return _json({})

    async def _log_settings(self, request: web.Request) -> web.Response:
        changes = await self._object(request)
        for name, value in changes.items():
            if not isinstance(value, (bool, int, str)):
                raise RequestError(f"{name[:64]!r} is not a string, a whole number, true or false")
        return _json(self._plane.log_settings(changes))

    async def _trace_settings(self, request: web.Request) -> web.Response:
        changes = {}
        for name, value in (await self._object(request)).items():
            values = [] if value is None else value if isinstance(value, list) else [value]
            if not all(isinstance(entry, (str, int)) for entry in values):
                raise RequestError(f"{name[:64]!r} is not a string, a list of strings, or null")
            changes[name] = [str(entry) for entry in values]
        found = self._plane.trace_settings(_model(request)[0], changes)
        return _json({name: v if name == "trace_level" else v[0] for name, v in found.items()})

    async def _memory_status(self, request: web.Request) -> web.Response:
        regions = self._plane.regions.status(_model(request)[0])
        return _json(
            [
                {"name": name, "key": r.key, "offset": r.offset, "byte_size": r.size}
                for name, r in regions.items()
            ]
        )

    async def _memory_register(self, request: web.Request) -> web.Response:
        given = await self._object(request)
        key, offset, size = given.get("key"), given.get("offset", 0), given.get("byte_size", 0)
        if not isinstance(key, str):
            raise RequestError("key is not a string")
        if any(isinstance(n, bool) or not isinstance(n, int) or n >= 2**63 for n in (offset, size)):
            raise RequestError("offset and byte_size are not whole numbers")
        self._plane.regions.register(_model(request)[0], key, offset, size)
        return _json({})

    async def _memory_unregister(self, request: web.Request) -> web.Response:
        await self._body(request)
        self._plane.regions.unregister(_model(request)[0])
        return _json({})

    async def _object(self, request: web.Request) -> dict[str, Any]:
        body = await self._body(request)
        return json_object(body) if body.strip() else {}

    async def _infer(self, request: web.Request) -> web.Response:
        size = request.content_length or 0
        if size > self._plane.settings.max_message_bytes:
            raise web.HTTPRequestEntityTooLarge(self._plane.settings.max_message_bytes, size)
        with self._plane.admitted(size):
            body = await self._body(request)
            name, version = _model(request)
            limits, regions = self._plane.settings.limits, self._plane.regions
            headers = {key.lower(): value for key, value in request.headers.items()}
            given = (body, request.headers.get(_HEADER_LENGTH), name, version, limits, headers, regions)
            if len(body) > _LARGE:
                asked = await asyncio.to_thread(infer_request, *given)
            else:
                asked = infer_request(*given)
            answer = await self._plane.infer(asked.request)
            if sum(array.nbytes for array in answer.outputs.values()) > _LARGE:
                data, length = await asyncio.to_thread(infer_response, asked, answer)
            else:
                data, length = infer_response(asked, answer)
            sent = {"Content-Type": "application/json"}
            if length is not None:
                sent = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(length)}
            data, coding = await _compressed(data, request.headers.get("Accept-Encoding", ""))
            if coding:
                sent["Content-Encoding"] = coding
            return web.Response(body=data, headers=sent)

    async def _no_cuda(self, request: web.Request) -> web.Response:
        raise UnsupportedError("this server has no CUDA shared memory; register system shared memory")

    async def _unknown(self, request: web.Request) -> web.Response:
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            found, methods = await resource.resolve(request)
            if found is None:
                allowed |= methods
        if allowed:
            response = _error(405, f"{request.path[:128]} takes {', '.join(sorted(allowed))}")
            response.headers["Allow"] = ", ".join(sorted(allowed))
            return response
        return _error(404, f"there is no {request.method} {request.path[:128]} on this server")


async def _page(request: web.Request) -> web.Response:
    """The page for people; it holds nothing, and asks with the key that its user gives."""
    text = (Path(__file__).parent / "page.html").read_text("utf-8")
    headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Frame-Options": "DENY"}
    return web.Response(text=text, content_type="text/html", headers=headers)


def _model(request: web.Request) -> tuple[str, str]:
    return request.match_info.get("name", ""), request.match_info.get("version", "")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(value), status=status, content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    response = _json({"error": text}, status)
    if status in (429, 503):
        response.headers["Retry-After"] = "1"
    return response


def _plain(message: Any) -> Any:
    """A message as the protocol's JSON writes it: its own field names, 64-bit numbers as numbers."""
    found = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(message.DESCRIPTOR, found)


def _numbers(descriptor: Any, value: dict[str, Any]) -> dict[str, Any]:
    for name, entry in value.items():
        field = descriptor.fields_by_name[name]
        inner = field.message_type
        if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
            value[name] = [int(number) for number in entry] if isinstance(entry, list) else int(entry)
        elif inner is not None and inner.GetOptions().map_entry:
            content = inner.fields_by_name["value"].message_type
            if content is not None:
                value[name] = {key: _numbers(content, item) for key, item in entry.items()}
        elif inner is not None and isinstance(entry, list):
            value[name] = [_numbers(inner, item) for item in entry]
        elif inner is not None:
            value[name] = _numbers(inner, entry)
    return value


async def _compressed(data: bytes, accepted: str) -> tuple[bytes, str]:
    """The body as the client asked for it: `gzip`, `deflate` or as it is."""
    asked = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    if "gzip" in asked and "identity" not in asked and len(data) > 1024:
        return await asyncio.to_thread(gzip.compress, data, 1), "gzip"
    if "deflate" in asked and "gzip" not in asked and len(data) > 1024:
        return await asyncio.to_thread(zlib.compress, data, 1), "deflate"
    return data, ""

"""Traces of requests, sent to an OpenTelemetry collector; needs `pip install onward[trace]`.

Source: W3C Trace Context for `traceparent`; Triton's trace extension for the settings. A request whose caller
is traced is traced as its child; of the others every `trace_rate`-th is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from onward.errors import ConfigError
from onward_server.errors import RequestError
from onward_server.settings import TraceSettings

__all__ = ["TraceState", "Tracer"]

_LOG = logging.getLogger(__name__)
_SCOPE = "onward_server"


@final
@dataclass(frozen=True, slots=True)
class TraceState:
    """Trace settings in force.

    Attributes:
        level: `OFF` or `TIMESTAMPS`.
        rate: every so many requests one is traced.
        count: how many are traced before it stops; -1: no end.
    """

    level: str
    rate: int
    count: int = -1

    def values(self) -> dict[str, list[str]]:
        """As the protocol writes them."""
        return {
            "trace_level": [self.level],
            "trace_rate": [str(self.rate)],
            "trace_count": [str(self.count)],
            "trace_mode": ["opentelemetry"],
        }


@final
class Tracer:
    """Decides which requests are traced, and traces them.

    Args:
        settings: where to, and how many.

    Raises:
        ConfigError: the packages are not installed.
    """

    def __init__(self, settings: TraceSettings) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError("trace: OpenTelemetry is missing; pip install onward[trace]") from None
        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": settings.service}))
        exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_SCOPE)
        self._propagator = TraceContextTextMapPropagator()
        self._first = TraceState("TIMESTAMPS" if settings.rate else "OFF", settings.rate or 1000)
        self._all = self._first
        self._models: dict[str, TraceState] = {}
        self._seen: dict[str, int] = {}

    def settings(self, model: str = "") -> TraceState:
        """Those in force for a model; for those without any of their own with an empty name."""
        return self._models.get(model, self._all)

    def change(self, model: str, values: Mapping[str, Sequence[str]]) -> TraceState:
        """Change settings; one without a value goes back.

        Raises:
            RequestError: names the setting.
        """
        base = self._all if model else self._first
        state = self.settings(model)
        for name, given in values.items():
            if name == "trace_level":
                level = given[0].upper() if given else base.level
                if len(given) > 1 or level not in ("OFF", "TIMESTAMPS"):
                    raise RequestError(f"settings['trace_level'] is {list(given)}; give OFF or TIMESTAMPS")
                state = replace(state, level=level)
            elif name == "trace_rate":
                state = replace(state, rate=_number(name, given, 1) if given else base.rate)
            elif name == "trace_count":
                state = replace(state, count=_number(name, given, -1) if given else base.count)
            elif name == "trace_mode":
                if given and list(given) != ["opentelemetry"]:
                    raise RequestError("settings['trace_mode'] can only be 'opentelemetry'")
            else:
                known = ", ".join(self._first.values())
                raise RequestError(f"settings[{name[:64]!r}] is unknown; there are {known}")
        if model:
            self._models[model] = state
        else:
            self._all = state
        return state

    def begin(self, model: str, headers: Mapping[str, str]) -> Any:
        """A span for a request, or None where it is not traced.

        Args:
            model: its name.
            headers: of the call, in lower case: `traceparent` and `tracestate` are read.
        """
        state = self.settings(model)
        if state.level == "OFF" or not state.count:
            return None
        context = self._propagator.extract(headers) if "traceparent" in headers else None
        parent = None if context is None else self._trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            self._seen[model] = (self._seen.get(model, 0) + 1) % state.rate
            if self._seen[model] != 1 % state.rate:
                return None
        elif not parent.trace_flags.sampled:
            return None
        if state.count > 0:
            left = replace(state, count=state.count - 1)
            if model in self._models:
                self._models[model] = left
            else:
                self._all = left
        return self._tracer.start_span(
            "infer", context=context, kind=self._trace.SpanKind.SERVER, attributes={"onward.model": model}
        )

    def end(
        self, span: Any, start: int, *, version: int, identity: str, engine: str, queue_ns: int, infer_ns: int
    ) -> None:
        """End the span of an answered request; its waiting and its computing are spans inside.

        Args:
            span: from `begin`.
            start: `time.time_ns()` then.
            version, identity: of the model, and of the request.
            engine: that answered.
            queue_ns, infer_ns: what it waited, and what the engine took.
        """
        span.set_attributes(
            {"onward.version": version, "onward.engine": engine, "onward.request_id": identity}
        )
        context = self._trace.set_span_in_context(span)
        now = time.time_ns()
        waited = min(start + queue_ns, now)
        queue = self._tracer.start_span("queue", context=context, start_time=start)
        queue.end(waited)
        compute = self._tracer.start_span("compute", context=context, start_time=waited)
        compute.end(min(waited + infer_ns, now))
        span.end(now)

    def fail(self, span: Any, error: BaseException) -> None:
        """End the span of a request that was not answered."""
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _number(name: str, given: Sequence[str], least: int) -> int:
    try:
        value = int(given[0]) if len(given) == 1 and len(given[0]) < 12 else least - 1
    except ValueError:
        value = least - 1
    if value < least:
        raise RequestError(f"settings[{name!r}] is {list(given)}; give a whole number from {least}")
    return value

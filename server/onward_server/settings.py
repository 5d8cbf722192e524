"""Settings of the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onward_server.model_settings import CrossCheckSettings, Engine

__all__ = [
    "NAME",
    "VERSION",
    "KeySettings",
    "Limits",
    "Role",
    "ServerSettings",
    "TlsSettings",
    "TraceSettings",
    "TrainingSettings",
    "changed_at_rest",
    "host_and_port",
]

Role = Literal["predict", "manage", "train"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What can be a model's name; nothing else reaches a path."""
VERSION = re.compile(r"[1-9][0-9]{0,8}")
"""What can be a version."""
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


@final
class Limits(BaseModel):
    """Bounds on what a client may send and hold.

    Attributes:
        tensors: inputs, and requested outputs, of one request.
        rank: dimensions of a tensor.
        elements: elements of a tensor.
        name_bytes: bytes of a name, a version or an id.
        metadata_bytes: bytes of a call's metadata or HTTP headers.
        response_bytes: bytes of all outputs of one answer.
        pending: requests in the server, in all models together.
        pending_bytes: bytes of them.
        connections: open connections of each port.
        idle_seconds: after which a connection without requests is closed.
        stream_requests: unanswered requests of one stream; reading goes on when one is answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: int = Field(default=256, ge=1, le=65536)
    rank: int = Field(default=32, ge=0, le=32)
    elements: int = Field(default=2**30, ge=1, le=2**40)
    name_bytes: int = Field(default=256, ge=1, le=65536)
    metadata_bytes: int = Field(default=16 * 1024, ge=1024, le=2**20)
    response_bytes: int = Field(default=256 * 2**20, ge=1024, lt=2**31)
    pending: int = Field(default=1024, ge=1)
    pending_bytes: int = Field(default=512 * 2**20, ge=1024)
    connections: int = Field(default=1024, ge=1)
    idle_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    stream_requests: int = Field(default=32, ge=1, le=4096)


@final
class KeySettings(BaseModel):
    """A key that clients present, and what it allows.

    Attributes:
        name: what logs call its holder.
        sha256: hexadecimal SHA-256 of the key; the key itself is nowhere in the settings.
        roles: `predict`: requests; `manage`: loading and unloading; `train`: training jobs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(repr=False)
    roles: frozenset[Role] = frozenset({"predict"})

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError("not 64 lower-case hexadecimal digits; `sha256sum` prints them")
        return value


@final
class TlsSettings(BaseModel):
    """Transport security of both ports; the files are read again on SIGHUP.

    Attributes:
        certificate: the server's chain, PEM.
        key: its private key, PEM.
        client_ca: authorities of client certificates, PEM; given, a client has to present one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path
    key: Path
    client_ca: Path | None = None


@final
class TrainingSettings(BaseModel):
    """Training jobs beside serving.

    Attributes:
        folder: jobs, their checkpoints and the lineage; of this server alone, and outside the repository.
        data_roots: folders, and URLs that fsspec reads and that end with `/`, below which data may lie.
            Empty: bundled data sets and data that clients send.
        jobs: that run at once; further ones wait.
        queue: jobs that may wait; further ones are refused.
        threads: of one job at most.
        nice: by how much jobs give way to predictions, as nice(1) has it.
        memory_bytes: data of one job's process; 0: half of what the machine or container has.
        max_seconds: that a job may run, its resumed parts counted each by themselves.
        data_bytes: of data that are sent or fetched for one job.
        keep: jobs that have ended and are kept; the oldest go.
        at_least, at_most: figures that every promotion needs, such as `{"test_accuracy": 0.9}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    data_roots: tuple[str, ...] = ()
    jobs: int = Field(default=1, ge=1, le=64)
    queue: int = Field(default=32, ge=0, le=10_000)
    threads: int = Field(default=1, ge=1, le=1024)
    nice: int = Field(default=15, ge=0, le=19)
    memory_bytes: int = Field(default=0, ge=0)
    max_seconds: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)
    data_bytes: int = Field(default=2**30, ge=1024)
    keep: int = Field(default=200, ge=1)
    at_least: dict[str, float] = Field(default_factory=dict)
    at_most: dict[str, float] = Field(default_factory=dict)

    @field_validator("data_roots")
    @classmethod
    def _roots_are_roots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for root in value:
            if "://" in root and not root.endswith("/"):
                raise ValueError(f"the URL {root!r} has to end with '/'")
            if "://" not in root and not Path(root).is_absolute():
                raise ValueError(f"the folder {root!r} has to be an absolute path")
        return value


@final
class TraceSettings(BaseModel):
    """Traces of requests.

    Attributes:
        endpoint: of an OpenTelemetry collector, OTLP over HTTP, e.g. `http://collector:4318/v1/traces`.
        rate: every so many requests one is traced, beside those whose caller is; 0: off until it is changed.
        service: `service.name` of the spans.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(pattern=r"^https?://.+")
    rate: int = Field(default=1000, ge=0)
    service: str = "onward"


@final
class ServerSettings(BaseSettings):
    """Settings of the whole server; `ONWARD_SERVER_<FIELD>` in the environment sets one.

    A field of a nested group is `ONWARD_SERVER_CROSS_CHECK__POLICY`.

    Attributes:
        repository: folder of `<name>/<version>/model.onnx`.
        listen: gRPC: `host:port` (port 0: a free one), `[v6]:port` or `unix:/path`.
        http_listen: HTTP: `host:port`, `[v6]:port`; empty: no such port.
        engine: the engine that answers, unless a model's config.toml says otherwise.
        fallback: whether onnxruntime serves models that Onward's engine cannot run.
        cross_check: the policy of models whose config.toml has none.
        threads: threads of each engine in one request.
        instances: workers of a version at most; the second one starts when requests wait.
        isolation: `process`: models run in worker processes; `thread`: in threads of the server.
        in_process: whether runs of microseconds may skip the worker: `auto` or `never`.
        in_process_us: microseconds that such a run may take.
        worker_nice: by how much workers give way to the process that answers, as nice(1) has it.
        worker_memory_bytes: data of one worker; 0: half of what the machine or container has.
        run_timeout: seconds after which a worker that still computes is replaced.
        load_timeout: seconds that opening a model may take.
        queue_size: requests of a version that may wait; further ones are refused.
        max_message_bytes: the largest request accepted.
        limits: further bounds.
        model_control: `none`: the repository is read at the start; `poll`: every `poll_seconds`;
            `explicit`: clients with the role `manage` load and unload.
        startup_models: with `explicit`, what is loaded at the start; `*`: everything.
        aliases: further names of models: `name`, or `name/version`; a model of that name comes first.
        remote_settings: whether clients with the role `manage` may change log and trace settings.
        response_cache_bytes: for answers of models with `response_cache`; 0: none.
        shared_memory: whether clients with the role `manage` may register regions of shared memory.
        trace: see TraceSettings; None: no traces.
        keys: who may call; empty: everybody may do everything that is enabled.
        tls: see TlsSettings; None: plain text.
        training: see TrainingSettings; None: no training jobs.
        access_log: share of answered requests that the access log has; refusals are logged once a second.
        shutdown_pause: seconds between reporting NOT_SERVING and refusing requests.
        drain_timeout: seconds that running requests have to finish after SIGTERM.
        log_level: the least that is logged.
        log_format: `text`, or `json`: one object a line.
    """

    model_config = SettingsConfigDict(
        env_prefix="ONWARD_SERVER_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )
    repository: Path
    listen: str = "127.0.0.1:8001"
    http_listen: str = ""
    engine: Engine = "onward"
    fallback: bool = True
    cross_check: CrossCheckSettings = CrossCheckSettings()
    threads: int = Field(default=1, ge=1, le=1024)
    instances: int = Field(default=2, ge=1, le=256)
    isolation: Literal["process", "thread"] = "process"
    in_process: Literal["auto", "never"] = "auto"
    in_process_us: float = Field(default=250.0, ge=0, allow_inf_nan=False)
    worker_nice: int = Field(default=3, ge=0, le=19)
    worker_memory_bytes: int = Field(default=0, ge=0)
    run_timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    load_timeout: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    queue_size: int = Field(default=256, ge=0)
    max_message_bytes: int = Field(default=64 * 2**20, ge=1024, lt=2**31)
    limits: Limits = Limits()
    model_control: Literal["none", "poll", "explicit"] = "none"
    poll_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    startup_models: tuple[str, ...] = ("*",)
    aliases: dict[str, str] = {}
    remote_settings: bool = False
    response_cache_bytes: int = Field(default=0, ge=0)
    shared_memory: bool = False
    trace: TraceSettings | None = None
    keys: tuple[KeySettings, ...] = ()
    tls: TlsSettings | None = None
    training: TrainingSettings | None = None
    access_log: float = Field(default=0.01, ge=0, le=1)
    shutdown_pause: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drain_timeout: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @model_validator(mode="after")
    def _jobs_are_not_models(self) -> Self:
        if self.training is not None and self.training.folder.resolve().is_relative_to(
            self.repository.resolve()
        ):
            raise ValueError("training.folder: it has to be outside the repository")
        return self

    @field_validator("aliases")
    @classmethod
    def _aliases_are_names(cls, value: dict[str, str]) -> dict[str, str]:
        for alias, target in value.items():
            model, slash, version = target.partition("/")
            for name in (alias, model):
                if not NAME.fullmatch(name):
                    raise ValueError(f"{name!r} cannot be a model's name")
            if slash and not VERSION.fullmatch(version):
                raise ValueError(f"{target!r}: {version!r} cannot be a version; give name, or name/version")
        return value

    @field_validator("listen", "http_listen")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        unix = info.field_name == "listen" and value.startswith("unix:")
        if not unix and not (info.field_name == "http_listen" and not value):
            host_and_port(value)
        return value


def host_and_port(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port of an address. Raises ValueError where it is none."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{address!r} is no address; give host:port or [v6]:port, the port at most 65535")
    return match["v6"] or match["host"], int(match["port"])


def changed_at_rest(old: ServerSettings, new: ServerSettings) -> list[str]:
    """Names of the settings that differ and that a running server does not change."""
    found = [name for name in _AT_REST if getattr(old, name) != getattr(new, name)]
    limits = [name for name in _LIMITS_AT_REST if getattr(old.limits, name) != getattr(new.limits, name)]
    found += [f"limits.{name}" for name in limits]
    if (old.in_process, new.in_process) == ("never", "auto"):
        found.append("in_process")
    if (old.tls is None) != (new.tls is None):
        found.append("tls")
    elif old.tls and new.tls and (old.tls.client_ca is None) != (new.tls.client_ca is None):
        found.append("tls.client_ca")
    return found


_LIMITS_AT_REST = ("idle_seconds", "metadata_bytes", "response_bytes")
"""Of the HTTP port and of workers."""
_AT_REST = (
    *("repository", "listen", "http_listen", "isolation", "in_process_us", "worker_memory_bytes"),
    *("worker_nice", "load_timeout", "max_message_bytes", "model_control", "poll_seconds", "startup_models"),
    *("response_cache_bytes", "shared_memory", "trace", "log_format"),
    "training",
)

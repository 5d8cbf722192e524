"""Settings of the server and of each model: defaults, a TOML file, the environment, the command line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, final, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from onward.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "BatchingSettings",
    "CrossCheckSettings",
    "Engine",
    "KeySettings",
    "Limits",
    "ModelSettings",
    "OnMismatch",
    "Policy",
    "Role",
    "ServerSettings",
    "TlsSettings",
    "Tolerance",
    "TraceSettings",
    "TrainingSettings",
    "VersionPolicy",
    "changed_at_rest",
    "host_and_port",
    "load_model_settings",
    "load_settings",
    "problems",
    "unknown_in_environment",
]

Engine = Literal["onward", "onnxruntime"]
Policy = Literal["off", "sample", "every", "shadow"]
Role = Literal["predict", "manage", "train"]
OnMismatch = Literal["log", "fail", "prefer-onnxruntime"]

MODEL_SETTINGS_FILE = "config.toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What can be a model's name; nothing else reaches a path."""
VERSION = re.compile(r"[1-9][0-9]{0,8}")
"""What can be a version."""
_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})")


@final
class Tolerance(BaseModel):
    """Two elements a and b (b from onnxruntime) agree when |a - b| <= atol + rtol * |b|.

    NaN agrees with NaN and an infinity with the same infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rtol: float = Field(ge=0, allow_inf_nan=False)
    atol: float = Field(ge=0, allow_inf_nan=False)


DEFAULT_TOLERANCE: dict[str, Tolerance] = {
    "float16": Tolerance(rtol=1e-2, atol=1e-3),
    "bfloat16": Tolerance(rtol=4e-2, atol=1e-2),
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float64": Tolerance(rtol=1e-9, atol=1e-12),
}
"""Tolerances of the floating-point types; every other type has to agree exactly."""


@final
class CrossCheckSettings(BaseModel):
    """When a second engine computes the same request, and what happens when the two disagree.

    Attributes:
        policy: `off`; `sample` checks the fraction `rate` of the requests, evenly spread; `every` checks
            each before it is answered; `shadow` answers at once and checks afterwards.
        rate: fraction of requests that `sample` checks at most, in (0, 1].
        share: of the machine's time that `sample` may take where answers do not wait for checks: of the
            process that answers and of all cores together. Fewer are checked where they would take more.
        on_mismatch: `log` answers with the serving engine's outputs; `fail` refuses with an error;
            `prefer-onnxruntime` answers with onnxruntime's. `shadow` answers before it knows: only `log`.
        tolerance: replaces the default of a dtype, e.g. `{"float32": {"rtol": 1e-3, "atol": 1e-4}}`.
        shadow_queue: shadow checks that may wait; further ones are dropped and counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = "sample"
    rate: float = Field(default=0.05, gt=0, le=1)
    share: float = Field(default=0.005, gt=0, le=1)
    on_mismatch: OnMismatch = "log"
    tolerance: dict[Literal["float16", "bfloat16", "float32", "float64"], Tolerance] = Field(
        default_factory=dict
    )
    shadow_queue: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _shadow_only_logs(self) -> Self:
        if self.policy == "shadow" and self.on_mismatch != "log":
            raise ValueError(f"policy 'shadow' cannot {self.on_mismatch!r}: it answers first; use 'log'")
        return self

    @property
    def answers_first(self) -> bool:
        """Whether answers do not depend on checks, and so do not wait for them."""
        return self.on_mismatch == "log" and self.policy in ("sample", "shadow")

    def tolerance_of(self, dtype: str) -> Tolerance | None:
        """The tolerance of a dtype name; None: the elements have to be equal."""
        own: Mapping[str, Tolerance] = {str(name): tolerance for name, tolerance in self.tolerance.items()}
        return own.get(dtype, DEFAULT_TOLERANCE.get(dtype))


@final
class BatchingSettings(BaseModel):
    """Requests joined along the first dimension of every input and output.

    Attributes:
        max_batch: rows of a batch at most; a single request may not have more.
        preferred: sizes at which a batch does not wait for more.
        max_delay_ms: milliseconds that the first request of a batch waits for others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: int = Field(ge=2, le=65536)
    preferred: tuple[int, ...] = ()
    max_delay_ms: float = Field(default=0.0, ge=0, le=10_000, allow_inf_nan=False)

    @model_validator(mode="after")
    def _preferred_fit(self) -> Self:
        wrong = [size for size in self.preferred if not 1 <= size <= self.max_batch]
        if wrong:
            raise ValueError(f"preferred {wrong[0]} is not between 1 and max_batch {self.max_batch}")
        return self


@final
class VersionPolicy(BaseModel):
    """Which versions of a model are served; without a field, all of them.

    Attributes:
        latest: the N highest numbers.
        specific: these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latest: int | None = Field(default=None, ge=1)
    specific: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.latest is not None and self.specific is not None:
            raise ValueError("give latest or specific, not both")
        return self

    def chosen(self, versions: Sequence[int]) -> list[int]:
        """Those of `versions` that are served, lowest first."""
        known = sorted(versions)
        if self.latest is not None:
            return known[-self.latest :]
        if self.specific is not None:
            return [version for version in known if version in self.specific]
        return known


@final
class ModelSettings(BaseModel):
    """How one model is served; unset fields follow the server's settings.

    Attributes:
        engine: the engine that answers; the other one is the cross-check's witness.
        fallback: whether onnxruntime may serve the model where Onward's engine cannot.
        cross_check: see CrossCheckSettings; replaces the server's as a whole.
        threads: threads of each engine in one request.
        instances: workers at most, each of which computes one batch at a time.
        batching: see BatchingSettings; None: every request is computed by itself.
        versions: see VersionPolicy.
        queue_size: requests that may wait; further ones are refused.
        default_priority: of requests that give none; 1 goes first.
        run_timeout: seconds after which a worker that still computes is replaced.
        in_process: whether runs of microseconds may skip the worker: `auto` or `never`.
        warm_up: shapes that are run before the version takes requests: for each, input names to extents.
        labels: file of a class name a line, beside config.toml, for the classification extension.
        response_cache: whether answers are kept for equal requests, in the server's `response_cache_bytes`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine | None = None
    fallback: bool | None = None
    cross_check: CrossCheckSettings | None = None
    threads: int | None = Field(default=None, ge=1)
    instances: int | None = Field(default=None, ge=1, le=256)
    batching: BatchingSettings | None = None
    versions: VersionPolicy = VersionPolicy()
    queue_size: int | None = Field(default=None, ge=0)
    default_priority: int = Field(default=100, ge=1, lt=2**32)
    run_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    in_process: Literal["auto", "never"] | None = None
    warm_up: tuple[dict[str, tuple[int, ...]], ...] = ()
    labels: str | None = None
    response_cache: bool = False


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


def load_settings(toml: Path | None = None, **options: Any) -> ServerSettings:
    """Settings from a TOML file, over them the environment, over both the options given here.

    Args:
        toml: file with the fields of ServerSettings; None: no file.
        options: fields of ServerSettings, nested groups as mappings.

    Raises:
        ConfigError: a file that cannot be read, an unknown field or a value that does not fit.
    """
    layers: list[dict[str, Any]] = [_read_toml(toml) if toml is not None else {}]
    try:
        layers.append(dict(EnvSettingsSource(ServerSettings)()))
    except SettingsError as error:
        raise ConfigError(f"environment: {_not_json(str(error), os.environ)}") from error
    layers.append(options)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer)
    try:
        return ServerSettings(**merged)
    except ValidationError as error:
        raise ConfigError(f"settings: {problems(error, ServerSettings)}") from error


def _not_json(text: str, names: Iterable[str]) -> str:
    """What is said of a variable that has to be JSON, in the place of the library's words."""
    found = re.search(r'field "(\w+)"', text)
    if found is None:
        return text
    variable = f"{ServerSettings.model_config['env_prefix']}{found[1]}".upper()
    given = [name for name in names if name.upper() == variable or name.upper().startswith(f"{variable}__")]
    which = " or ".join(sorted(given)) or variable
    return f'{which} is not JSON, as lists and tables have to be; ["a", "b"] is a list'


def unknown_in_environment(names: Iterable[str]) -> list[str]:
    """What is said of environment variables that look like settings and are none.

    Those that Kubernetes sets for a service named `onward-server` are left out.
    """
    prefix = str(ServerSettings.model_config["env_prefix"])
    known = {f"{prefix}{name}".upper() for name in ServerSettings.model_fields}
    found = []
    for name in names:
        first = name.upper().removeprefix(prefix).partition("__")[0]
        if not name.upper().startswith(prefix) or prefix + first in known or _KUBERNETES.fullmatch(first):
            continue
        near = difflib.get_close_matches(prefix + first, known, n=1)
        found.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return sorted(found)


def changed_at_rest(old: ServerSettings, new: ServerSettings) -> list[str]:
    """Names of the settings that differ and that a running server does not change."""
    return [name for name in _AT_REST if getattr(old, name) != getattr(new, name)]


_AT_REST = (
    *("repository", "listen", "http_listen", "isolation", "in_process_us", "worker_memory_bytes"),
    *("worker_nice", "load_timeout", "max_message_bytes", "model_control", "poll_seconds", "startup_models"),
    *("response_cache_bytes", "shared_memory", "trace", "log_format"),
    "training",
)


def load_model_settings(folder: Path) -> ModelSettings:
    """The settings in a model folder's config.toml; defaults when there is none.

    Raises:
        ConfigError: the file cannot be read, has an unknown field or a value that does not fit.
    """
    path = folder / MODEL_SETTINGS_FILE
    if not path.is_file():
        return ModelSettings()
    try:
        return ModelSettings.model_validate(_read_toml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error, ModelSettings)}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        nested = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(dict(under or {}), value) if nested else value
    return result


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What does not fit in settings of a model class, field by field."""
    return "; ".join(_problem(problem, model) for problem in error.errors(include_url=False))


def _problem(problem: ErrorDetails, model: type[BaseModel]) -> str:
    where = [str(part) for part in problem["loc"]]
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        text = "it has to be given"
    if problem["type"] == "extra_forbidden":
        known = _fields(model, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        text = "there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{'.'.join(where) or 'value'}: {text}"


def _fields(model: type[BaseModel], where: Sequence[str]) -> Sequence[str]:
    """Names of the settings in the table at a path; none where that is no table of ours."""
    for name in where:
        if name.isdecimal():
            continue
        field = model.model_fields.get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        below = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if below is None:
            return ()
        model = below
    return tuple(model.model_fields)

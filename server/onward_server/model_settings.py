"""How one model is served: the settings of its config.toml, and of the cross-check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "DEFAULT_TOLERANCE",
    "MODEL_SETTINGS_FILE",
    "BatchingSettings",
    "CrossCheckSettings",
    "Engine",
    "ModelSettings",
    "OnMismatch",
    "Policy",
    "Tolerance",
    "VersionPolicy",
]

Engine = Literal["onward", "onnxruntime"]
Policy = Literal["off", "sample", "every", "shadow"]
OnMismatch = Literal["log", "fail", "prefer-onnxruntime"]
MODEL_SETTINGS_FILE = "config.toml"


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

"""What a comparison of two engines found."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, final

from onward.errors import VerificationError
from onward.verify.tolerance import Tolerance

__all__ = ["Difference", "Report", "TensorRow"]

_SHOWN = 20

Kind = Literal["output", "loss", "gradient", "parameter", "slot", "statistic"]
Cause = Literal["node", "accumulation", "optimization", "engine"]
Verdict = Literal["agree", "kinks", "rounding", "differ"]


@final
@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor in both engines.

    Attributes:
        name: of the output.
        kind: what the tensor is.
        dtype, shape: as Onward gave it.
        max_abs: the largest |ours − theirs|; infinite where only one is a number.
        max_rel: the largest |ours − theirs| / max(|ours|, |theirs|).
        tolerance: what was allowed.
        ok: whether it was kept, at every step.
        step: the training step, or the sample, with the numbers given: the first that failed, else the worst.
        note: what differs when it is not the elements: dtype, shape.
        rounding: whether the tensor is beyond its tolerance by no more than rounding alone moves it, as
            measured on runs whose every number is off at random by what rounding does to it.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    tolerance: Tolerance
    ok: bool
    step: int = 0
    note: str | None = None
    rounding: bool = False

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "rounding" if self.rounding else "FAIL"
        numbers = f"max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}, run {self.step}"
        shape = ", ".join(map(str, self.shape))
        return f"{verdict} {self.kind} {self.name}: {self.dtype}[{shape}] {self.note or numbers}"


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """Where two engines part.

    Attributes:
        cause: `node`: this node gives something else for the same inputs. `accumulation`: no single node
            does, rounding adds up, and this is the first node past the tolerance (None where only the states
            differ that earlier steps left). `optimization`: the engines agree when onnxruntime's graph
            optimizations are off; the node is None. `engine`: every node's NumPy kernel agrees with
            onnxruntime, and the engine that was compared gives something else for this node; `theirs` is
            what the kernel makes of the engine's own inputs to it.
        node, operator, domain, opset, output: the node, and its output that differs.
        index: the node's place in the graph's order.
        position: the element that differs most.
        ours, theirs: its values.
        max_abs, max_rel: over the output.
        step: the training step, or the sample.
        note: what differs when it is not the elements.
    """

    cause: Cause
    step: int
    node: str | None = None
    operator: str | None = None
    domain: str = ""
    opset: int = 0
    output: str | None = None
    index: int = 0
    position: tuple[int, ...] | None = None
    ours: str | None = None
    theirs: str | None = None
    max_abs: float = 0.0
    max_rel: float = 0.0
    note: str | None = None

    @property
    def is_fault(self) -> bool:
        """Whether a node does something else than its operator, whatever reached it."""
        return self.cause in ("node", "engine") and self.node is not None

    def __str__(self) -> str:
        if self.cause == "optimization":
            return "the engines agree when onnxruntime's graph optimizations are off: one of those differs"
        if self.node is None:
            return (
                f"no node differs in run {self.step} when both engines start it from the same state; "
                "rounding adds up over the runs"
            )
        operator = f"{self.domain}.{self.operator}" if self.domain else self.operator
        where = f"node {self.node!r} (number {self.index}), operator {operator}, opset {self.opset}"
        values = f"max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}"
        if self.position is not None:
            values += f", at {list(self.position)} {self.ours} against {self.theirs}"
        what = f"output {self.output!r}, run {self.step}: {self.note or values}"
        if self.cause == "node":
            return f"first differing node: {where}, {what}"
        if self.cause == "engine":
            return (
                f"the engine that was compared differs from its operators' kernels first at {where}, {what}"
            )
        return (
            "no single node differs when it is given the same inputs; "
            f"rounding adds up past the tolerance first at {where}, {what}"
        )


@final
@dataclass(frozen=True, slots=True)
class Report:
    """A comparison of Onward with onnxruntime.

    Attributes:
        subject: what was compared.
        witness: the other engine and its version.
        seed: of the random inputs.
        runs: samples, or training steps.
        rows: one a tensor.
        first_difference: where the engines part; None where they agree, or where the runs could not be
            taken apart.
        near: elements within their forward error of a kink, over the runs that had to be looked into.
        kinks: how many of those the engines took on different sides, and so were held on the same.
        kinked: the nodes they are operands of.
    """

    subject: str
    witness: str
    seed: int
    runs: int
    rows: tuple[TensorRow, ...]
    first_difference: Difference | None = None
    near: int = 0
    kinks: int = 0
    kinked: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every tensor agrees within its tolerance."""
        return all(row.ok for row in self.rows)

    @property
    def verdict(self) -> Verdict:
        """What the comparison comes to.

        - `agree`: every tensor is within its tolerance.
        - `kinks`: it is, once the elements that lie within rounding of a kink are on the same side in both.
        - `rounding`: some are beyond it, by no more than rounding alone moves them, or, forward, while every
          node agrees when it is given the same inputs: the network amplifies rounding.
        - `differ`: rounding explains less than was found.
        """
        if self.passed:
            return "kinks" if self.kinks else "agree"
        found = self.first_difference
        amplified = all(row.ok or row.rounding for row in self.rows)
        return "rounding" if amplified or (found is not None and found.cause == "accumulation") else "differ"

    @property
    def failures(self) -> tuple[TensorRow, ...]:
        """The tensors that do not agree."""
        return tuple(row for row in self.rows if not row.ok)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that JSON lacks are the strings `inf` and `nan`."""
        fields: dict[str, Any] = _plain(dataclasses.asdict(self))
        return {"passed": self.passed, "verdict": self.verdict, **fields}

    def raise_if_failed(self) -> None:
        """Raise the report as an error if it is one.

        Raises:
            VerificationError: a tensor does not agree; the text is the report's.
        """
        if not self.passed:
            raise VerificationError(str(self))

    def __str__(self) -> str:
        what = f"{len(self.rows)} tensors over {self.runs} runs"
        held = ""
        if self.kinks:
            units = "1 unit" if self.kinks == 1 else f"{self.kinks} units"
            held = f" after {units} at kinks held the same ({', '.join(self.kinked)})"
        if self.passed:
            return f"{self.subject}: onward and {self.witness} agree on {what}{held}"
        amplified = self.verdict == "rounding"
        lines = [
            f"{self.subject}: onward and {self.witness} "
            + ("agree within rounding, which the network amplifies" if amplified else "disagree")
            + f" on {len(self.failures)} of {what}{held}",
            *(f"  {row}" for row in self.failures[:_SHOWN]),
        ]
        if (more := len(self.failures) - _SHOWN) > 0:
            lines.append(f"  … and {more} more")
        if self.first_difference is not None:
            lines.append(f"  {self.first_difference}")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

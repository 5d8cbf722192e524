"""Which rule lowers which request.

A rule is registered for a class of requests by the decorator of the function that emits its calls:

    @lowers(Gather, suits=_unsuited)
    def gather(c: Context, request: Gather) -> None: ...

`suits` is asked before anything is emitted, and says why the rule cannot lower a request; then the node runs
its NumPy kernel. The modules of `onward.compile.rules` are found by importing the package: there is no list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.context import Context, Queries
from onward.compile.geometry import Border
from onward.compile.options import CompileOptions
from onward.compile.program import Operation, Program
from onward.graph.requests import Request

__all__ = ["Borders", "Rule", "lowers", "rule_for", "splits", "splitter_for"]

R = TypeVar("R", bound=Request)


@dataclass(frozen=True, eq=False)
class Borders:
    """The borders of zeros that a request's kernels need around images.

    Attributes:
        needed: the border of each operand.
        alike: pairs of values that kernels walk along alike: both have one border.
    """

    needed: Mapping[ir.Value, Border] = field(default_factory=dict)
    alike: Sequence[tuple[ir.Value, ir.Value]] = ()


@dataclass(frozen=True, eq=False)
class Rule:
    """How requests of a class are lowered.

    Attributes:
        suits: why it cannot lower a request, or None; it emits nothing.
        emit: adds the calls.
        borders: what its kernels need around images.
    """

    suits: Callable[[Queries, Any], str | None]
    emit: Callable[[Context, Any], None]
    borders: Callable[[Program, Any, CompileOptions, Target], Borders]


_rules: dict[type[Request], Rule] = {}
_splitters: dict[type[Request], Callable[..., Any]] = {}


def _always(q: Queries, request: Request) -> None:
    return None


def _none(program: Program, request: Request, options: CompileOptions, target: Target) -> Borders:
    return Borders()


def lowers(
    kind: type[R],
    *,
    suits: Callable[[Queries, R], str | None] = _always,
    borders: Callable[[Program, R, CompileOptions, Target], Borders] = _none,
) -> Callable[[Callable[[Context, R], None]], Callable[[Context, R], None]]:
    """Register the function that emits calls for a class of requests.

    Args:
        kind: the class.
        suits: why a request cannot be lowered, or None; by default every one can.
        borders: what the kernels need around images; by default nothing.

    Raises:
        TypeError: the class has a rule.
    """

    def register(emit: Callable[[Context, R], None]) -> Callable[[Context, R], None]:
        if kind in _rules:
            raise TypeError(f"{kind.__name__} has two rules")
        _rules[kind] = Rule(suits, emit, borders)
        return emit

    return register


def rule_for(request: Request) -> Rule | None:
    """The rule for a request; None where no kernel computes it."""
    return _rules.get(type(request))


Splitter = Callable[[Program, Operation, R, dict[object, Any]], Sequence[Operation] | None]


def splits(kind: type[R]) -> Callable[[Splitter[R]], Splitter[R]]:
    """Register the function that puts several operations in the place of one.

    It gives None where it leaves the operation as it is. Its last argument is shared by all operations of a
    program: what one made, others find there.
    """

    def register(split: Splitter[R]) -> Splitter[R]:
        _splitters[kind] = split
        return split

    return register


def splitter_for(request: Request) -> Splitter[Any] | None:
    """The function that splits operations with such a request, if there is one."""
    return _splitters.get(type(request))

"""What is asked of a server without doing input or output, and the two ways to ask it.

A conversation is a generator of calls: it yields a Call, is sent the response message, and returns the
result. A method is defined once, as a function that gives a conversation; `now` makes of it a method of a
synchronous client, `later` one of an asynchronous client.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, final

from onward_client.errors import ClientError, ModelNotFoundError

__all__ = ["Call", "Calls", "Conversation", "later", "now", "one"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_C = TypeVar("_C")
_Held = TypeVar("_Held", covariant=True)


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One remote call.

    Attributes:
        path: gRPC method.
        request: the message to send.
        response_type: the class of the message that comes back.
        subject: what the call is about, for error texts.
        wait: whether to wait for a server that cannot be reached yet.
        missing: the error where there is no such thing.
        further: messages that are sent behind `request`; None: the method takes one.
    """

    path: str
    request: Any
    response_type: Any
    subject: str
    wait: bool = False
    missing: type[ClientError] = ModelNotFoundError
    further: Iterable[Any] | AsyncIterable[Any] | None = None


Calls: TypeAlias = Generator[Call, Any, _T]
"""Yields calls, is sent their responses, returns the result."""


@final
@dataclass(frozen=True, slots=True)
class Conversation(Generic[_T]):
    """Calls, and the seconds that they may take together; None: the client's."""

    calls: Calls[_T]
    timeout: float | None


def one(call: Call, convert: Callable[[Any], _T], timeout: float | None) -> Conversation[_T]:
    """A conversation of one call; `convert` makes the result of its response."""

    def calls() -> Calls[_T]:
        response = yield call
        return convert(response)

    return Conversation(calls(), timeout)


class _Now(Protocol[_Held]):
    """A synchronous client, or a part of one, and what says its conversations."""

    @property
    def _asks(self) -> _Held: ...

    def _run(self, conversation: Conversation[_T]) -> _T: ...


class _Later(Protocol[_Held]):
    """As above, asynchronous."""

    @property
    def _asks(self) -> _Held: ...

    async def _run(self, conversation: Conversation[_T]) -> _T: ...


def now(
    ask: Callable[Concatenate[_C, _P], Conversation[_T]],
) -> Callable[Concatenate[_Now[_C], _P], _T]:
    """The method that has a conversation and returns its result."""

    def method(self: _Now[_C], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(ask(self._asks, *args, **kwargs))

    return _described(method, ask)


def later(
    ask: Callable[Concatenate[_C, _P], Conversation[_T]],
) -> Callable[Concatenate[_Later[_C], _P], Coroutine[Any, Any, _T]]:
    """The method that returns when its conversation has been had."""

    async def method(self: _Later[_C], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(ask(self._asks, *args, **kwargs))

    return _described(method, ask)


def _described(method: _C, ask: Callable[..., Any]) -> _C:
    """The method with the name, documentation and parameters of what it asks, and the type of the result."""
    described: Any = wraps(ask)(method)  # type: ignore[arg-type]
    del described.__wrapped__
    result = ask.__annotations__["return"].removeprefix("Conversation[").removesuffix("]")
    described.__annotations__ = {**ask.__annotations__, "return": result}
    described.__signature__ = inspect.signature(ask).replace(return_annotation=result)
    return described

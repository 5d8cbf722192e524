"""Calls of functions of other libraries, on blocks of tensors."""

from __future__ import annotations

from dataclasses import replace

from onward.compile.context import Context
from onward.compile.placement import side_by_side
from onward.compile.registry import lowers
from onward.errors import InvalidModelError
from onward.graph import requests

__all__: list[str] = []


@lowers(requests.StartCall)
def start_call(c: Context, request: requests.StartCall) -> None:
    """What was not computed in the block is copied into it; then the call."""
    readers = [group.last.request for group in c.uses.groups(request.block)]
    same = [(r.function, r.tag) for r in readers if isinstance(r, requests.WaitCall)]
    if same != [(request.function, request.tag)] or len(readers) != 1 or request.block in c.uses.outputs:
        raise InvalidModelError(
            f"{request.block.name!r} is changed until one WaitCall of function {request.function!r} and tag "
            f"{request.tag} has it: nothing else may read it"
        )
    block = c.new_plain(request.block)
    views = side_by_side(block, [c.shape(x) for x in request.operands], request.offset)
    for x, view in zip(request.operands, views, strict=True):
        source = c.present(x)
        if source.buffer is not block.buffer:
            c.copy(source, view)
    c.foreign(request.function, block, request.tag, waits=False)


@lowers(requests.WaitCall)
def wait_call(c: Context, request: requests.WaitCall) -> None:
    """The same memory, once the function has ended."""
    block = c.plain(request.block)
    c.foreign(request.function, block, request.tag, waits=True)
    c.alias(request.y, replace(block))

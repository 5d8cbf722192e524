"""Requests and answers between a transport and the data plane: arrays and names, no wire format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

from onward.errors import UnsupportedError
from onward.graph import Array
from onward_server.dataplane.shared_memory import Placement
from onward_server.errors import RequestError
from onward_server.settings import Limits

__all__ = [
    "InferAnswer",
    "InferRequest",
    "Parameter",
    "RequestedOutput",
    "check_name",
    "check_tensor",
    "scheduling",
    "tensor_parameters",
]

Parameter: TypeAlias = bool | int | float | str

_REGION, _REGION_SIZE, _REGION_OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_TEXT = 64


@final
@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: the output.
        classes: how many of the highest values of each row are answered in their place; 0: the values.
        placement: where in shared memory the answer goes; None: into the answer.
    """

    name: str
    classes: int = 0
    placement: Placement | None = None


@final
@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request, decoded.

    Attributes:
        model: name of a model.
        version: "" for the latest.
        inputs: an array for each of the model's inputs.
        outputs: what is asked for; None: every output.
        id: comes back in the answer.
        priority: 1 goes first; 0: the model's default.
        deadline: when the answer is of no use any more, as `time.monotonic()`; None: never.
        headers: of the call, names in lower case; a trace goes on from them.
    """

    model: str
    inputs: Mapping[str, Array]
    version: str = ""
    outputs: Sequence[RequestedOutput] | None = None
    id: str = ""
    priority: int = 0
    deadline: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The answer to a request.

    Attributes:
        model: the model's name.
        version: the version that answered.
        id: the request's.
        outputs: arrays in the order asked for.
        parameters: `engine` whose outputs these are, and what became of the `cross_check`.
        placed: outputs that were written to shared memory, and where.
    """

    model: str
    version: int
    id: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    placed: Mapping[str, Placement] = field(default_factory=dict)


def check_name(field_name: str, text: str, limits: Limits) -> str:
    """The text of a name, a version or an id, if it is not too long.

    Raises:
        RequestError: names the field.
    """
    if len(text) > limits.name_bytes or len(text.encode("utf-8", "surrogatepass")) > limits.name_bytes:
        start = text[:_TEXT]
        raise RequestError(f"{field_name} {start!r}… is longer than {limits.name_bytes} bytes")
    return text


def check_tensor(where: str, shape: Sequence[int], limits: Limits) -> None:
    """Refuse a shape before anything is made of it.

    Raises:
        RequestError: a negative dimension, a rank or a number of elements above the limits.
    """
    if len(shape) > limits.rank:
        raise RequestError(f"{where}: shape has {len(shape)} dimensions; at most {limits.rank} are taken")
    if any(extent < 0 for extent in shape):
        raise RequestError(f"{where}: shape {list(shape)} has a negative dimension")
    if math.prod(shape) > limits.elements:
        raise RequestError(f"{where}: shape {list(shape)} has more than {limits.elements} elements")


def tensor_parameters(where: str, parameters: Mapping[str, Parameter]) -> tuple[int, Placement | None]:
    """What a tensor's parameters ask for.

    Returns:
        The number of classes of an output (0: the values themselves), and where in shared memory the tensor
        lies or goes (None: nowhere).

    Raises:
        RequestError: a value that makes no sense.
    """
    if not parameters:
        return 0, None
    classes = _whole(where, parameters, "classification")
    region = parameters.get(_REGION)
    if region is None:
        for name in (_REGION_SIZE, _REGION_OFFSET):
            if name in parameters:
                raise RequestError(f"{where}.parameters[{name!r}] is given without {_REGION!r}")
        return classes, None
    if not isinstance(region, str) or not region:
        raise RequestError(f"{where}.parameters[{_REGION!r}] is not the name of a region")
    if _REGION_SIZE not in parameters:
        raise RequestError(f"{where}.parameters: {_REGION!r} needs {_REGION_SIZE!r} beside it")
    size, offset = (_whole(where, parameters, name) for name in (_REGION_SIZE, _REGION_OFFSET))
    return classes, Placement(region, size, offset)


def _whole(where: str, parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise RequestError(f"{where}.parameters[{name!r}] is {value!r}; give a whole number from 0")
    return value


def scheduling(parameters: Mapping[str, Parameter], now: float) -> tuple[int, float | None]:
    """Priority and deadline that a request's parameters ask for (schedule policy extension).

    Args:
        parameters: of the request; `timeout` in microseconds.
        now: `time.monotonic()` at its arrival.

    Raises:
        UnsupportedError: the sequence extension.
        RequestError: a value that makes no sense.
    """
    for name in _SEQUENCE:
        if parameters.get(name):
            raise UnsupportedError(f"parameters[{name!r}]: sequences are not supported")
    numbers = {}
    for name in ("priority", "timeout"):
        value = parameters.get(name, 0)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise RequestError(f"parameters[{name!r}] is {value!r}; give a whole number from 0")
        numbers[name] = value
    timeout = numbers["timeout"]
    return numbers["priority"], now + timeout / 1e6 if timeout else None

"""The protocol's JSON and binary tensors to arrays and back.

Source: Open Inference Protocol v2 (REST); Triton's binary tensor data, classification, statistics, model
configuration and model repository extensions.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from onward.errors import UnsupportedError
from onward.graph import Array
from onward_protos.tensors import DATATYPES, TensorFormatError, datatype_of, decode_raw, encode_raw
from onward_server.dataplane import InferAnswer, InferRequest, RequestedOutput
from onward_server.dataplane.messages import (
    Parameter,
    check_name,
    check_tensor,
    scheduling,
    tensor_parameters,
)
from onward_server.dataplane.shared_memory import SharedMemory
from onward_server.errors import RequestError
from onward_server.grpc_convert import with_meaning
from onward_server.settings import Limits

__all__ = ["HttpInfer", "infer_request", "infer_response", "json_object", "repository_parameters"]

_NO_JSON = ("FP16", "BF16")


@final
class HttpInfer:
    """A request in neutral form, and how its answer is written.

    Attributes:
        request: the request.
        binary: outputs that say whether they are answered as bytes.
        binary_default: for outputs that say nothing; None: nor does the request, and those that have no JSON
            form are bytes where the request had bytes too.
        has_bytes: whether binary tensors could follow the request's JSON.
    """

    def __init__(
        self, request: InferRequest, binary: Mapping[str, bool], binary_default: bool | None, has_bytes: bool
    ) -> None:
        self.request = request
        self.binary = binary
        self.binary_default = binary_default
        self.has_bytes = has_bytes

    def is_binary(self, name: str, datatype: str) -> bool:
        """Whether an output is answered as bytes."""
        wanted = self.binary.get(name, self.binary_default)
        return self.has_bytes and datatype in _NO_JSON if wanted is None else wanted


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: the bytes are none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise RequestError("the body is not a JSON object")
    return found


def infer_request(
    body: bytes,
    header_length: str | None,
    model: str,
    version: str,
    limits: Limits,
    headers: Mapping[str, str],
    regions: SharedMemory,
) -> HttpInfer:
    """The request of a body.

    Args:
        body: JSON, and binary tensors behind it.
        header_length: `Inference-Header-Content-Length`; None: all of the body is JSON.
        model, version: from the path.
        limits: bounds.
        headers: of the request, names in lower case.
        regions: shared memory that inputs may lie in.

    Raises:
        RequestError: names the field that is wrong.
        UnsupportedError: an extension that this server does not have.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal()) or int(header_length[:10]) > len(body):
            raise RequestError(
                f"Inference-Header-Content-Length is {header_length[:32]!r}; the body has {len(body)} bytes"
            )
        length = int(header_length)
    header = json_object(body[:length])
    parameters = _parameters("parameters", header)
    priority, deadline = scheduling(parameters, time.monotonic())
    inputs = _decoded(_tensors(header, "inputs", limits), memoryview(body)[length:], limits, regions)
    outputs, binary = _requested(_tensors(header, "outputs", limits, required=False), limits)
    request_id = _optional(header, "id", "")
    if not isinstance(request_id, str):
        raise RequestError("id is not a string")
    request = InferRequest(
        check_name("the model's name", model, limits),
        inputs,
        check_name("the model's version", version, limits),
        outputs,
        check_name("id", request_id, limits),
        priority,
        deadline,
        headers,
    )
    binary_default = _flag("parameters", parameters, "binary_data_output")
    return HttpInfer(request, binary, binary_default, header_length is not None)


def infer_response(asked: HttpInfer, answer: InferAnswer) -> tuple[bytes, int | None]:
    """A body, and the length of its JSON where binary tensors follow."""
    outputs: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for name, array in answer.outputs.items():
        datatype = datatype_of(array.dtype)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        placement = answer.placed.get(name)
        if placement is not None:
            entry["parameters"] = {
                "shared_memory_region": placement.region,
                "shared_memory_byte_size": placement.size,
                "shared_memory_offset": placement.offset,
            }
        elif asked.is_binary(name, datatype):
            raw = encode_raw(array)
            entry["parameters"] = {"binary_data_size": len(raw)}
            buffers.append(raw)
        else:
            entry["data"] = _json_data(name, datatype, array)
        outputs.append(entry)
    header: dict[str, Any] = {
        "model_name": answer.model,
        "model_version": str(answer.version),
        "parameters": dict(answer.parameters),
        "outputs": outputs,
    }
    if answer.id:
        header["id"] = answer.id
    text = json.dumps(header, separators=(",", ":"), allow_nan=True).encode()
    if not buffers:
        return text, None
    return b"".join([text, *buffers]), len(text)


def repository_parameters(header: Mapping[str, Any]) -> dict[str, bool | int | str | bytes]:
    """The parameters of a load or unload call; `file:...` is base64.

    Raises:
        RequestError: names the parameter.
    """
    given = _optional(header, "parameters", {})
    if not isinstance(given, dict):
        raise RequestError("parameters is not a JSON object")
    found: dict[str, bool | int | str | bytes] = {}
    for name, value in given.items():
        if not isinstance(value, (bool, int, str)):
            raise RequestError(f"parameters[{name!r}] is not a string, a whole number, true or false")
        if name.startswith("file:") and isinstance(value, str):
            try:
                found[name] = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise RequestError(f"parameters[{name!r}] is not base64") from None
        else:
            found[name] = value
    return found


def _optional(owner: Mapping[str, Any], name: str, absent: object) -> Any:
    """A field that may be left out; clients whose messages are classes write `null` for such a one."""
    value = owner.get(name)
    return absent if value is None else value


def _parameters(where: str, owner: Mapping[str, Any]) -> dict[str, Parameter]:
    given = _optional(owner, "parameters", {})
    if not isinstance(given, dict):
        raise RequestError(f"{where} is not a JSON object")
    for name, value in given.items():
        if not isinstance(value, (bool, int, float, str)):
            raise RequestError(f"{where}[{name[:64]!r}] is not a string, a number, true or false")
    return given


def _flag(where: str, parameters: Mapping[str, Parameter], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{where}[{name!r}] is not true or false")
    return value


def _tensors(
    header: Mapping[str, Any], field: str, limits: Limits, *, required: bool = True
) -> list[dict[str, Any]]:
    given = _optional(header, field, None if required else [])
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise RequestError(f"{field} is not a list of JSON objects")
    if len(given) > limits.tensors:
        raise RequestError(f"{field} has {len(given)} entries; at most {limits.tensors} are taken")
    for position, entry in enumerate(given):
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{field}[{position}].name is not a name")
        check_name(f"{field}[{position}].name", name, limits)
    return given


def _decoded(
    entries: Sequence[Mapping[str, Any]], binary: memoryview, limits: Limits, regions: SharedMemory
) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    offset = 0
    for position, entry in enumerate(entries):
        name: str = entry["name"]
        where = f"inputs[{position}] ({name!r})"
        if name in arrays:
            raise RequestError(f"{where}: the name is given twice")
        datatype, shape = entry.get("datatype"), entry.get("shape")
        if not isinstance(datatype, str) or datatype not in DATATYPES:
            raise RequestError(f"{where}: datatype {str(datatype)[:32]!r} is unknown")
        if not isinstance(shape, list) or not all(
            isinstance(extent, int) and not isinstance(extent, bool) for extent in shape
        ):
            raise RequestError(f"{where}: shape is not a list of whole numbers")
        check_tensor(where, shape, limits)
        parameters = _parameters(f"{where}.parameters", entry)
        placement = tensor_parameters(where, parameters)[1]
        size = parameters.get("binary_data_size")
        try:
            if placement is not None:
                if size is not None or "data" in entry:
                    raise TensorFormatError("it lies in shared memory, and data are given beside it")
                array = decode_raw(datatype, shape, regions.read(where, placement))
            elif size is not None:
                if (
                    isinstance(size, bool)
                    or not isinstance(size, int)
                    or not 0 <= size <= len(binary) - offset
                ):
                    raise TensorFormatError(
                        f"binary_data_size is {size!r}; {len(binary) - offset} bytes are left behind the JSON"
                    )
                if "data" in entry:
                    raise TensorFormatError("data is given beside binary_data_size; use one of them")
                array = decode_raw(datatype, shape, bytes(binary[offset : offset + size]))
                offset += size
            else:
                array = _from_json(datatype, shape, entry.get("data"))
        except TensorFormatError as error:
            raise RequestError(f"{where}: {error}") from None
        arrays[name] = (
            with_meaning(where, datatype, array) if size is not None or placement is not None else array
        )
    if offset != len(binary):
        raise RequestError(f"{len(binary) - offset} bytes behind the JSON belong to no input")
    return arrays


def _from_json(datatype: str, shape: Sequence[int], data: object) -> Array:
    if datatype in _NO_JSON:
        raise TensorFormatError(f"{datatype} has no JSON form; send it as binary data")
    if not isinstance(data, list):
        raise TensorFormatError("data is not a list")
    flat = _flat(data, shape)
    if len(flat) != math.prod(shape):
        raise TensorFormatError(
            f"data has {len(flat)} elements; shape {list(shape)} takes {math.prod(shape)}"
        )
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in flat):
            raise TensorFormatError("an element of BYTES is not a string")
        try:
            "".join(flat).encode()
        except UnicodeEncodeError:
            raise TensorFormatError("an element of BYTES holds half of a surrogate pair") from None
        text = np.empty(len(flat), dtype=object)
        text[:] = flat
        return text.reshape(tuple(shape))
    dtype = DATATYPES[datatype]
    allowed: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    for value in flat:
        if not isinstance(value, allowed) or (dtype.kind != "b" and isinstance(value, bool)):
            raise TensorFormatError(f"{json.dumps(value)[:32]} is no element of {datatype}")
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if flat and not (info.min <= min(flat) and max(flat) <= info.max):
            raise TensorFormatError(f"a value is outside {datatype}'s range {info.min} to {info.max}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=dtype).reshape(tuple(shape))
    except (OverflowError, FloatingPointError):
        raise TensorFormatError(f"a value is outside {datatype}'s range") from None


def _flat(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """The elements of a list that is flat already or nested as the shape says."""
    count = 1
    for extent in shape[:-1]:
        if not data or not isinstance(data[0], list):
            break
        if not all(isinstance(entry, list) for entry in data):
            raise TensorFormatError("data mixes lists and elements")
        count *= extent
        if len(data) != count or len({len(entry) for entry in data}) > 1:
            raise TensorFormatError(f"data is nested otherwise than shape {list(shape)}")
        data = [element for entry in data for element in entry]
    return data


def _requested(
    entries: Sequence[Mapping[str, Any]], limits: Limits
) -> tuple[list[RequestedOutput] | None, dict[str, bool]]:
    found: list[RequestedOutput] = []
    binary: dict[str, bool] = {}
    for position, entry in enumerate(entries):
        name: str = entry["name"]
        where = f"outputs[{position}] ({name!r})"
        parameters = _parameters(f"{where}.parameters", entry)
        wanted = _flag(f"{where}.parameters", parameters, "binary_data")
        if wanted is not None:
            binary[name] = wanted
        found.append(RequestedOutput(name, *tensor_parameters(where, parameters)))
    return found or None, binary


def _json_data(name: str, datatype: str, array: Array) -> list[Any]:
    if datatype in _NO_JSON:
        raise UnsupportedError(
            f"output {name!r} is {datatype}, which has no JSON form; ask for it with binary_data = true"
        )
    values: list[Any] = array.ravel().tolist()
    return values

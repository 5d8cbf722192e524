"""Plans as bytes: a JSON text of everything but arrays, then the arrays, each at a multiple of 64 bytes.

The text holds numbers, strings and lists only, and operators by name and attributes, so that reading a file
never runs code that is in it. Whether the bytes arrived whole is for the caller to check.
"""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.compile.body_file import body_bytes, read_body
from onward.compile.spec import (
    NONE,
    PlanBuffer,
    PlanCall,
    PlanCheck,
    PlanCopy,
    PlanFallback,
    PlanRow,
    PlanSpec,
    PlanStart,
    PlanStep,
    PlanTensor,
    PlanWait,
    Region,
)
from onward.graph import Array, Op
from onward.graph.op import versions_of

__all__ = ["NotStorableError", "read_plan", "write_plan"]

_FORMAT = "onward plan 2"
_LENGTH = struct.Struct("<Q")
_ALIGN = 64


class NotStorableError(Exception):
    """A plan that a file cannot hold, or bytes that are not a plan."""


def write_plan(plan: PlanSpec) -> bytes:
    """The bytes of a plan.

    Raises:
        NotStorableError: an operator that is not registered, holds strings, or has a body with tensors in
            other files.
    """
    writer = _Writer()
    head = {
        "format": _FORMAT,
        "threads": plan.threads,
        "arena_bytes": plan.arena_bytes,
        "kept_bytes": plan.kept_bytes,
        "buffers": [[m.region.value, m.nbytes, m.offset, m.name] for m in plan.buffers],
        "constants": [writer.array(a) for a in plan.constants],
        "kernels": plan.kernels,
        "checks": [writer.step(check) for check in plan.checks],
        "prologue": [writer.step(step) for step in plan.prologue],
        "steps": [writer.step(step) for step in plan.steps],
        "outputs": {name: _flat_tensor(tensor) for name, tensor in plan.outputs.items()},
        "rows": [[r.kernel, r.operators, r.flops, r.bytes, r.reason] for r in plan.rows],
    }
    text = json.dumps({**head, "arrays": writer.table}, separators=(",", ":")).encode()
    body = b"".join(writer.parts)
    return b"".join((_LENGTH.pack(len(text)), text, bytes(-(len(text) + _LENGTH.size) % _ALIGN), body))


def read_plan(data: bytes) -> PlanSpec:
    """The plan that bytes hold.

    Raises:
        NotStorableError: they are not a plan of this format, or its parts do not fit together.
    """
    try:
        plan = _read(data)
        _check(plan)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error) as error:
        raise NotStorableError(f"not a plan: {error}") from error
    return plan


class _Writer:
    def __init__(self) -> None:
        self.table: list[list[Any]] = []
        self.parts: list[bytes] = []
        self._end = 0

    def array(self, array: Array) -> int:
        """Keep an array; returns its number."""
        if array.dtype.hasobject or np.dtype(array.dtype.name) != array.dtype:
            raise NotStorableError(f"an array of {array.dtype}")
        content = np.ascontiguousarray(array).tobytes()
        self.table.append([array.dtype.name, array.shape, self._end])
        padding = -len(content) % _ALIGN
        self.parts.extend((content, bytes(padding)))
        self._end += len(content) + padding
        return len(self.table) - 1

    def step(self, step: PlanStep) -> list[Any]:
        """A step as a list that begins with its kind."""
        match step:
            case PlanCall():
                return ["call", step.kernel, int(step.no_barrier), _flat(step.arguments)]
            case PlanStart():
                return ["start", step.name, _flat(step.arguments)]
            case PlanWait():
                return ["wait", step.name, _flat(step.arguments)]
            case PlanCopy():
                return ["copy", _flat_tensor(step.source), _flat_tensor(step.target)]
            case PlanCheck():
                tensor = _flat_tensor(step.tensor)
                return [
                    "check",
                    step.node,
                    step.op_type,
                    step.opset,
                    tensor,
                    step.low,
                    step.extent,
                    step.what,
                ]
            case PlanFallback():
                inputs = [None if w is None else _flat_tensor(w) for w in step.inputs]
                outputs = [None if w is None else _flat_tensor(w) for w in step.outputs]
                return [
                    "fallback",
                    step.node,
                    step.op_type,
                    step.opset,
                    self._operator(step.operator),
                    inputs,
                    outputs,
                ]

    def _operator(self, operator: Op) -> list[Any]:
        cls = type(operator)
        versions = versions_of(getattr(cls, "domain", ""), getattr(cls, "op_type", ""))
        since = next((version for version, known in versions.items() if known is cls), None)
        if since is None:
            raise NotStorableError(f"operator {cls.__name__} is not registered")
        attributes = {f.name: self._attribute(getattr(operator, f.name)) for f in fields(operator)}
        return [cls.domain, cls.op_type, since, attributes]

    def _attribute(self, content: Any) -> Any:
        if content is None or isinstance(content, bool | int | float | str):
            return content
        if isinstance(content, tuple) and all(isinstance(v, bool | int | float | str) for v in content):
            return list(content)
        if isinstance(content, np.ndarray):
            return {"array": self.array(content)}
        if isinstance(content, ir.Graph) and (body := body_bytes(content)) is not None:
            return {"body": self.array(np.frombuffer(body, np.uint8))}
        raise NotStorableError(f"an attribute of {type(content).__name__}")


def _flat(arguments: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for pair in arguments for number in pair]


def _pairs(flat: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _flat_tensor(tensor: PlanTensor) -> list[Any]:
    return [tensor.buffer, tensor.shape, tensor.strides, tensor.dtype.name, tensor.offset]


def _read(data: bytes) -> PlanSpec:
    (length,) = _LENGTH.unpack_from(data)
    head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    if head["format"] != _FORMAT:
        raise ValueError(f"format {head['format']!r}")
    start = -(-(length + _LENGTH.size) // _ALIGN) * _ALIGN
    arrays = [_array(data, start, *entry) for entry in head["arrays"]]
    return PlanSpec(
        threads=head["threads"],
        arena_bytes=head["arena_bytes"],
        kept_bytes=head["kept_bytes"],
        buffers=tuple(PlanBuffer(Region(region), *rest) for region, *rest in head["buffers"]),
        constants=tuple(arrays[number] for number in head["constants"]),
        kernels=tuple(head["kernels"]),
        checks=tuple(_check_step(*rest) for _, *rest in head["checks"]),
        prologue=tuple(_step(step, arrays) for step in head["prologue"]),
        steps=tuple(_step(step, arrays) for step in head["steps"]),
        outputs={name: _read_tensor(tensor) for name, tensor in head["outputs"].items()},
        rows=tuple(PlanRow(*row) for row in head["rows"]),
    )


def _array(data: bytes, start: int, dtype: str, shape: list[int], offset: int) -> Array:
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    # a copy: in the file's bytes nothing begins at a multiple of its size
    return np.frombuffer(data, kind, count, start + offset).reshape(shape).copy()


def _read_tensor(tensor: list[Any]) -> PlanTensor:
    buffer, shape, strides, dtype, offset = tensor
    return PlanTensor(buffer, tuple(shape), tuple(strides), np.dtype(dtype), offset)


def _check_step(
    node: str, op_type: str, opset: int, tensor: list[Any], low: int, extent: int, what: str
) -> PlanCheck:
    return PlanCheck(node, op_type, opset, _read_tensor(tensor), low, extent, what)


def _step(step: list[Any], arrays: list[Array]) -> PlanStep:
    kind, *rest = step
    match kind:
        case "call":
            kernel, no_barrier, flat = rest
            return PlanCall(kernel, _pairs(flat), bool(no_barrier))
        case "start":
            name, flat = rest
            return PlanStart(name, _pairs(flat))
        case "wait":
            name, flat = rest
            return PlanWait(name, _pairs(flat))
        case "copy":
            source, target = rest
            return PlanCopy(_read_tensor(source), _read_tensor(target))
        case "check":
            return _check_step(*rest)
        case "fallback":
            node, op_type, opset, operator, inputs, outputs = rest
            return PlanFallback(
                node,
                op_type,
                opset,
                _operator(operator, arrays),
                tuple(None if w is None else _read_tensor(w) for w in inputs),
                tuple(None if w is None else _read_tensor(w) for w in outputs),
            )
    raise ValueError(f"a step of kind {kind!r}")


def _operator(operator: list[Any], arrays: list[Array]) -> Op:
    domain, op_type, since, attributes = operator
    cls = versions_of(domain, op_type)[since]
    found: dict[str, Any] = {}
    for name, content in attributes.items():
        match content:
            case list():
                found[name] = tuple(content)
            case {"array": number}:
                found[name] = arrays[number]
            case {"body": number}:
                found[name] = read_body(arrays[number].tobytes())
            case _:
                found[name] = content
    return cls(**found)


def _check(plan: PlanSpec) -> None:
    """Raises:
    ValueError: a call names a kernel or an address that the plan does not have.
    """
    sizes = [plan.kept_bytes if m.region is Region.KEPT else plan.arena_bytes for m in plan.buffers]
    for memory, size in zip(plan.buffers, sizes, strict=True):
        inside = memory.region not in (Region.ARENA, Region.KEPT) or memory.offset + memory.nbytes <= size
        if not inside or memory.nbytes < 0 or memory.offset < 0:
            raise ValueError("a buffer is outside its block")
    limits = [m.nbytes for m in plan.buffers]
    for step in (*plan.prologue, *plan.steps):
        if isinstance(step, PlanCall) and not 0 <= step.kernel < len(plan.kernels):
            raise ValueError("a call of an unknown kernel")
        if isinstance(step, PlanCall | PlanStart | PlanWait):
            for buffer, offset in step.arguments:
                if not NONE <= buffer < len(plan.buffers) or (
                    buffer != NONE and not 0 <= offset <= limits[buffer]
                ):
                    raise ValueError("an argument is outside its buffer")
        if isinstance(step, PlanStart | PlanWait) and not isinstance(step.name, str):
            raise ValueError("a function's name is text")

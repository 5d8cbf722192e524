"""What a model's plans follow from, as a hash: its structure, and the contents that count as constants."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onward.compile.body_file import body_bytes, opsets_of
from onward.compile.codegen.target import Target
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import is_weight
from onward.graph import dims_of, is_float
from onward.version import __version__

__all__ = ["ModelKey", "compiler_version"]

_PLAIN = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.FLOAT,
        ir.AttributeType.STRING,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    }
)

_SOURCES = ("compile", "engine", "graph", "ops", "passes")
"""Packages whose code decides what a plan is."""


class ModelKey:
    """Content addresses of a model's plans.

    Args:
        model: it is read once, and not expected to change afterwards.
        bindings: state inputs and the outputs that replace them.
    """

    def __init__(self, model: ir.Model, bindings: Mapping[str, str]) -> None:
        self._model = model
        self._bindings = sorted(bindings.items())

    def key(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        swapped: Collection[str],
        target: Target,
        threads: int,
        options: CompileOptions = DEFAULT_OPTIONS,
        given: Sequence[tuple[str, bytes]] = (),
    ) -> str | None:
        """64 hex digits; None for a model with parts that have no bytes to hash, such as strings.

        Args:
            shapes: of the inputs.
            swapped: weights whose contents do not count.
            target: the processor.
            threads: that the plan may use.
            options: what the user chose about kernels.
            given: contents of inputs that the plan is for.
        """
        if self._structure is None or self._contents is None:
            return None
        contents = [
            (name, digest)
            for name, (value, tensor, digest) in self._contents.items()
            if not is_weight(value, tensor, swapped)
        ]
        choices = (target.plan_key, threads, options)
        parts = (compiler_version(), choices, sorted(shapes.items()), sorted(swapped), tuple(given))
        whole = (parts, self._bindings, self._structure, contents)
        return hashlib.sha256(repr(whole).encode()).hexdigest()

    @functools.cached_property
    def _structure(self) -> str | None:
        """A hash of everything but the contents of initializers."""
        graph = self._model.graph
        if self._model.functions:
            return None
        numbers: dict[ir.Value | None, int] = {None: -1}
        parts: list[Any] = [sorted(opsets_of(graph).items())]
        for value in (*graph.inputs, *graph.initializers.values()):
            tensor = value.const_value
            held = None if tensor is None else (int(tensor.dtype), tuple(tensor.shape.numpy()))
            parts.append((numbers.setdefault(value, len(numbers)), _typed(value), held))
        for node in graph:
            attributes = [_attribute(a) for a in node.attributes.values()]
            unknown = any(v not in numbers for v in node.inputs)
            if unknown or None in attributes or any(v.const_value is not None for v in node.outputs):
                return None
            made = [(numbers.setdefault(v, len(numbers)), _typed(v)) for v in node.outputs]
            operands = [numbers[v] for v in node.inputs]
            parts.append((node.domain, node.op_type, node.name, attributes, operands, made))
        if any(v not in numbers for v in graph.outputs):
            return None
        parts.append([(v.name, numbers[v]) for v in graph.outputs])
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @functools.cached_property
    def _contents(self) -> dict[str, tuple[ir.Value, ir.TensorProtocol, str]] | None:
        """Hashes of the initializers that may count as constants; None where there are strings."""
        state = {v.name for v in self._model.graph.inputs}
        found: dict[str, tuple[ir.Value, ir.TensorProtocol, str]] = {}
        for name, value in self._model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or is_weight(value, tensor, ()) or (name in state and is_float(value)):
                continue
            if tensor.dtype == ir.DataType.STRING:
                return None
            found[name] = (value, tensor, _digest(tensor))
        return found


@functools.cache
def compiler_version() -> str:
    """Names the code that makes plans: this package, by version and content, and what it relies on."""
    digest = hashlib.sha256(repr((__version__, onnx.__version__, np.__version__)).encode())
    root = Path(__file__).parents[1]
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _typed(value: ir.Value) -> tuple[Any, ...]:
    kind = (
        int(value.dtype) if type(value.type) is ir.TensorType and value.dtype is not None else str(value.type)
    )
    return (value.name, kind, dims_of(value))


def _attribute(attribute: ir.Attr) -> tuple[Any, ...] | None:
    """An attribute in a form whose text tells all of it; None where there is no such form."""
    if attribute.is_ref():
        return None
    if attribute.type in _PLAIN:
        content = attribute.value
        return (attribute.name, attribute.type.name, content if isinstance(content, str) else repr(content))
    if attribute.type == ir.AttributeType.GRAPH:
        body = body_bytes(attribute.as_graph())
        return None if body is None else (attribute.name, "GRAPH", hashlib.sha256(body).hexdigest())
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype != ir.DataType.STRING:
        return (attribute.name, _digest(attribute.value))
    return None


def _digest(tensor: ir.TensorProtocol) -> str:
    array = tensor.numpy()
    head = f"{int(tensor.dtype)} {array.shape} "
    if tensor.dtype == ir.DataType.STRING:
        return hashlib.sha256((head + repr(array.tolist())).encode("utf-8", "backslashreplace")).hexdigest()
    return hashlib.sha256(head.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()

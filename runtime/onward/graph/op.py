"""What an operator is: a frozen class whose fields are the ONNX attributes.

An operator class gives

- `kernel(self, *inputs)`: the NumPy meaning, the oracle for every other engine. Absent optional inputs come
  as None. It returns one array, or a tuple with one entry an output (trailing outputs that nobody asked for
  may be left out; `self.output_count` says how many are named).
- `gradient(self, g, dy, y, *inputs)`: graph → graph. `g` is a `Builder`; `dy`, `y` and the inputs are graph
  values. It returns one gradient an input, None where there is none. The autodiff engine sums gradients over
  several uses and over broadcast axes. With `multiple_outputs=True`, `dy` and `y` are tuples, and `dy` has
  None where no gradient arrives.
- `expand(self, g, *inputs)`: the operator in terms of other operators, as graph values; required for the
  operators of `ai.onward`, where it is the definition that other runtimes execute.
- `element(self, *operands)`: for element-wise operators, the result as an `Expression` of the operands: the
  compiler fuses such operators into one pass.
  One that has such a form for some constant operands only says so in `element_suits(self, *contents)`.
- `lower(self, static, outputs, *inputs)`: what the compiler is asked to compute, as a `Request` of
  `onward.graph.requests`, or `Unsupported` with the reason why no kernel does; `static` knows shapes and
  constants. Operators with neither `element` nor `lower` run their NumPy kernel inside the compiled plan.
- `loop(thread, threads, *outputs, *inputs, *attributes)`, a static method, for an operator without `lower`:
  what Numba compiles; see `onward.graph.requests.Loop`.
- `infer(self, *inputs)`: output types, required for `ai.onward` and domains of one's own. The standard's come
  from `onnx`; a class of the standard gives `infer` only where `onnx` finds no shape, or a wrong one; None
  leaves what it found.

A class is registered for the exact schema versions that it implements, so that an operator which changes in
a later opset is refused, never guessed. Versions that lack some of its attributes mean their defaults. A
version that differs in more has a class of its own with nothing but

- `canonical(self, g, *inputs)`: the same in terms of current operators, as graph values. `canonical_graph`
  puts it in the node's place before anything runs, is planned or differentiated. Operators of domains that
  `onnx` has no schemas of (`com.microsoft`) have nothing else.

Operators with graphs as attributes are described in `onward.graph.bodies`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import InvalidModelError, UnsupportedError
from onward.graph.own import load_own
from onward.graph.types import Array, TextTensor

__all__ = [
    "CONSUMED_INPUTS",
    "NO_WEIGHT",
    "ONWARD_DOMAIN",
    "Op",
    "attributes_of",
    "bind",
    "find",
    "has_schemas",
    "is_weight_operand",
    "newest_version",
    "op",
    "registered",
    "versions_of",
]

ONWARD_DOMAIN = "ai.onward"
_OF_ONE_PROCESSOR = "com.microsoft.nchwc"
NO_WEIGHT = "onward/no-weight"
"""Marks, in `ir.Value.meta`, initialisers of which an operator says that they are no weights, once standard
operators have taken its place that would say otherwise."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Op:
    """Base of every operator; see the module's text for the methods that a class gives."""

    op_type: ClassVar[str]
    domain: ClassVar[str]
    since: ClassVar[tuple[int, ...]]
    multiple_outputs: ClassVar[bool]
    refuses_data: ClassVar[bool] = True
    """Whether the kernel may raise an error about data of the right shapes and types."""

    static_operands: ClassVar[tuple[str, ...]] = ()
    """The operands, as `kernel` names them, that are axes, extents, steps or counts: a plan is for contents
    of these, where they follow from small inputs."""

    weight_operands: ClassVar[tuple[str, ...]] = ()
    """The operands, as the class's method names them, that are weights where they are float initialisers: of
    operators outside the standard; those are trained unless something else is asked for."""

    follows_from_shapes: ClassVar[bool] = False
    """Whether the results follow from the shapes and element types of the operands alone."""

    output_count: int = field(default=1, repr=False)
    """How many outputs the node names, counting up to the last one that is used."""

    @property
    def varies(self) -> bool:
        """Whether two runs on the same operands differ: random numbers without a seed."""
        return False

    def varies_on(self, operands: Sequence[Array | None]) -> bool:
        """Whether two runs differ on operands of which the constants are known."""
        return self.varies


_O = TypeVar("_O", bound=Op)
_registry: dict[tuple[str, str], dict[int, type[Op]]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def op(
    op_type: str,
    *,
    since: int | tuple[int, ...],
    domain: str = "",
    multiple_outputs: bool = False,
) -> Callable[[type[_O]], type[_O]]:
    """Register a class as the meaning of an operator.

    Args:
        op_type: the operator's name in the ONNX specification.
        since: the schema version or versions (`since_version` on the operator's page) with this meaning.
        domain: the operator's domain; empty for the ONNX standard.
        multiple_outputs: whether `gradient` takes and gives tuples of output gradients and outputs.
    """

    def register(cls: type[_O]) -> type[_O]:
        versions = (since,) if isinstance(since, int) else since
        required: tuple[str, ...] = ("kernel",)
        if domain == ONWARD_DOMAIN:
            required = ("kernel", "infer", "expand")
        elif domain and not has_schemas(domain):
            required = ("kernel", "infer")
        if domain == ONWARD_DOMAIN or not any(hasattr(cls, name) for name in ("canonical", "explicit")):
            for method in required:
                if not callable(getattr(cls, method, None)):
                    raise TypeError(f"operator class {cls.__name__} has no {method}()")
        final = dataclass(frozen=True, kw_only=True)(cls)
        final.op_type, final.domain = op_type, domain
        final.since, final.multiple_outputs = versions, multiple_outputs
        known = _registry.setdefault((domain, op_type), {})
        for version in versions:
            if version in known:
                raise TypeError(f"{op_type} version {version} is registered twice")
            known[version] = final
        return final

    return register


@functools.cache
def _load_all() -> None:
    importlib.import_module("onward.ops").load_all()


def versions_of(domain: str, op_type: str) -> Mapping[int, type[Op]]:
    """The classes of one operator by schema version; empty where there is none."""
    if (domain, op_type) not in _registry:
        importlib.import_module("onward.ops").load(domain, op_type)
    if (domain, op_type) not in _registry:  # in the file of another, or nowhere
        _load_all()
    if (domain, op_type) not in _registry and not has_schemas(domain):
        load_own()
    return _registry.get((domain, op_type), {})


def registered() -> Mapping[tuple[str, str], Mapping[int, type[Op]]]:
    """Every operator class by (domain, type) and schema version."""
    _load_all()
    return _registry


@functools.cache
def is_weight_operand(node: ir.Node, index: int) -> bool:
    """Whether the class of a node's operator, outside the standard, says that an operand is a weight."""
    opset = node.graph.opset_imports.get(node.domain, 0) if node.graph is not None else 0
    try:
        rules: Any = find(node.domain, node.op_type, opset)
    except UnsupportedError:
        return False
    method, before = (rules.canonical, 2) if hasattr(rules, "canonical") else (rules.kernel, 1)
    names = list(inspect.signature(method).parameters)[before:]
    return index < len(names) and names[index] in rules.weight_operands


def find(domain: str, op_type: str, opset: int) -> type[Op]:
    """The class that implements an operator at an opset.

    Raises:
        UnsupportedError: the operator is unknown, or its version at this opset is not implemented.
    """
    domain = "" if domain == "ai.onnx" else domain
    versions = versions_of(domain, op_type)
    if domain == ONWARD_DOMAIN:
        since = opset
    elif not has_schemas(domain):
        if not versions:
            raise _not_there(domain, op_type, opset)
        since = max((v for v in versions if v <= opset), default=opset)
    else:
        if domain == "" and opset > onnx.defs.onnx_opset_version():
            raise UnsupportedError(
                f"operator {op_type} at opset {opset}: the newest opset known is "
                f"{onnx.defs.onnx_opset_version()}; convert the model to it or to an older one"
            )
        try:
            since = onnx.defs.get_schema(op_type, opset, domain).since_version
        except onnx.defs.SchemaError:
            raise _not_there(domain, op_type, opset) from None
    try:
        return versions[since]
    except KeyError:
        have = ", ".join(map(str, sorted(versions))) or "none"
        raise UnsupportedError(
            f"operator {op_type} version {since} (opset {opset}, domain {domain or 'ai.onnx'!r}) "
            f"is not implemented; versions implemented: {have}"
        ) from None


def _not_there(domain: str, op_type: str, opset: int) -> UnsupportedError:
    if domain == _OF_ONE_PROCESSOR:
        # blocks of 8 or 16 channels, as the processor had it; the file does not say which
        return UnsupportedError(
            f"operator {op_type} of domain {domain!r} has its weights laid out for the processor on which "
            "onnxruntime saved the file; use the file that it was made from, or save it with "
            "graph_optimization_level = ORT_ENABLE_EXTENDED"
        )
    known = sorted({d or "ai.onnx" for d, _ in registered()})
    missing = domain in known and not has_schemas(domain)
    what = "is not implemented; asked for at" if missing else "does not exist at"
    return UnsupportedError(
        f"operator {op_type} of domain {domain or 'ai.onnx'!r} {what} opset {opset}; "
        f"known domains: {', '.join(known)}"
    )


@functools.cache
def has_schemas(domain: str) -> bool:
    """Whether `onnx` has schemas of a domain; of others the classes here are all that is known."""
    return domain in {schema.domain for schema in onnx.defs.get_all_schemas()}


def newest_version(domain: str) -> int:
    """The newest version of a domain's operators; 1 where there is none."""
    return max((v for (d, _), known in _registry.items() if d == domain for v in known), default=1)


CONSUMED_INPUTS = "consumed_inputs"
"""An attribute of the first opsets that allowed operators to overwrite operands; it has no meaning."""


@functools.cache
def _attribute_fields(cls: type[Op], opset: int) -> Mapping[str, bool]:
    """Names of a class's attributes that the version at an opset has, and whether each is required."""
    found = {
        f.name: f.default is MISSING and f.default_factory is MISSING
        for f in fields(cls)
        if f.name != "output_count"
    }
    if not has_schemas(cls.domain):
        return found
    schema = onnx.defs.get_schema(cls.op_type, opset, cls.domain).attributes
    return {name: required for name, required in found.items() if name in schema}


def _attribute_value(attribute: ir.Attr) -> Any:
    match attribute.type:
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return tuple(attribute.value)
        case ir.AttributeType.FLOATS:
            return tuple(float(np.float32(v)) for v in attribute.value)
        case ir.AttributeType.FLOAT:
            return float(np.float32(attribute.value))  # as a file holds it
        case ir.AttributeType.TENSOR:
            tensor = attribute.value
            if tensor.dtype == ir.DataType.STRING:
                tensor = TextTensor(tensor.string_data(), shape=tensor.shape)
            return tensor.numpy()
        case _:
            return attribute.value


def attributes_of(operator: Op, shared: type[Op] | None = None) -> dict[str, Any]:
    """An operator's attributes by name, or those that it has in common with a base, for a node of another."""
    names = (f.name for f in fields(operator if shared is None else shared))
    return {name: getattr(operator, name) for name in names if name != "output_count"}


def bind(node: ir.Node, opset: int) -> Op:
    """The operator of a node with the node's attributes.

    Raises:
        UnsupportedError: no class implements the operator at this opset.
        InvalidModelError: an attribute is unknown, missing, or refers to a function's attribute.
    """
    cls = find(node.domain, node.op_type, opset)
    known = _attribute_fields(cls, opset)  # type: ignore[arg-type]
    where = f"node {node.name!r}, operator {node.op_type}, opset {opset}"
    values: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            raise InvalidModelError(
                f"{where}: attribute {name!r} refers to a function's attribute outside one"
            )
        if name == CONSUMED_INPUTS and opset < 6:
            continue
        if name not in known:
            raise InvalidModelError(f"{where}: unknown attribute {name!r}; it has {sorted(known)}")
        values[name] = _attribute_value(attribute)
    if missing := [name for name, required in known.items() if required and name not in values]:
        raise InvalidModelError(f"{where}: required attribute {', '.join(map(repr, missing))} is missing")
    named = [i for i, value in enumerate(node.outputs) if value.name]
    return cls(output_count=max(named, default=-1) + 1, **values)

"""Networks: handles in, an ONNX model out."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Array, Builder, TensorSpec, dims_of, dtype_of, numpy_dtype, spec_of
from onward.nn.initializers import generator
from onward.nn.layer import Layer
from onward.nn.summary import Summary, is_weight, summarize
from onward.nn.trace import (
    OPSET,
    Input,
    Parameter,
    Placement,
    Tensor,
    check_name,
    is_parameter,
    numbered,
    parameter_of,
    placement_of,
    require_same,
)

__all__ = ["Model", "Network", "Sequential"]

IR_VERSION = 10


class Network(ABC):
    """A named ONNX model that layers wrote; `model` is all that it is."""

    model: ir.Model

    @abstractmethod
    def __init__(self) -> None: ...

    @property
    def name(self) -> str:
        """The name of the model's graph."""
        return self.model.graph.name or ""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the inputs."""
        return tuple(spec_of(value) for value in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes of the outputs."""
        return tuple(spec_of(value) for value in self.model.graph.outputs)

    @property
    def parameters(self) -> dict[str, Array]:
        """Parameters and running statistics by name, as the model holds them now; read-only by convention."""
        return {
            name: value.const_value.numpy()
            for name, value in self.model.graph.initializers.items()
            if is_weight(value) and value.const_value is not None
        }

    def summary(self) -> Summary:
        """Layers with output shapes, parameters and multiply-accumulates; print it, or `.show()` it."""
        return summarize(self.model)

    def __repr__(self) -> str:
        sides = ("; ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"{type(self).__name__}({self.name!r}: {' -> '.join(sides)})"


@final
class Model(Network):
    """A network from handles, with one or several inputs and outputs.

    What lies between inputs and outputs is copied: handles stay usable, for other models too.

    Args:
        inputs: handles that `Input` gave.
        outputs: handles, or a mapping from names to handles; without names they are called `output` (or
            `output_1`, ... where there are several).
        name: the model's name.
        seed: with the name of a parameter it determines that parameter's first values.

    Raises:
        ConfigError: an output depends on an input that is not listed, an input reaches no output, or two
            tensors or layers have one name.
    """

    def __init__(
        self,
        inputs: Tensor | Sequence[Tensor],
        outputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
        *,
        name: str = "model",
        seed: int = 0,
    ) -> None:
        sources = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if isinstance(outputs, Mapping):
            results = list(outputs.values())
            result_names = list(outputs)
        else:
            results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            result_names = _default_names("output", len(results))
        self.model = _extract(sources, dict(zip(result_names, results, strict=True)), name, seed)


@final
class Sequential(Network):
    """A network that is a chain of layers.

    Args:
        layers: layers, or functions from a handle to a handle.
        input_shape: the shape of one sample, without the batch.
        input_dtype: the input's element type; "int64" for token ids.
        name: the model's name.
        seed: with the name of a parameter it determines that parameter's first values.

    Raises:
        ShapeError: a layer does not fit its input; the message names it.
        ConfigError: there is no layer, or two have one name.
    """

    def __init__(
        self,
        layers: Sequence[Layer | Callable[[Tensor], Tensor]],
        *,
        input_shape: Sequence[int | str],
        input_dtype: str | np.dtype[Any] | type = "float32",
        name: str = "sequential",
        seed: int = 0,
    ) -> None:
        if not layers:
            raise ConfigError(f"network {name!r}: Sequential needs at least one layer")
        source = Input(input_shape, input_dtype)
        x = source
        for layer in layers:
            x = layer(x)
        self.model = _extract([source], {"output": x}, name, seed)


def _default_names(base: str, count: int) -> list[str]:
    return [base] if count == 1 else [f"{base}_{i + 1}" for i in range(count)]


def _extract(sources: Sequence[Tensor], results: Mapping[str, Tensor], name: str, seed: int) -> ir.Model:
    """Copy what lies between the sources and the results into a model of its own."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"network {name!r}: seed must be an int that is not negative, got {seed!r}")
    check_name("network", name)
    if not sources or not results:
        raise ConfigError(f"network {name!r}: needs at least one input and one output")
    copy = _Copy(name, seed)
    copy.add_inputs(sources)
    nodes, reached = _upstream([tensor.value for tensor in results.values()])
    copy.require_inputs(reached)
    copy.name_layers(nodes)
    for node in nodes:
        copy.add_node(node)
    for result_name, tensor in results.items():
        copy.add_output(result_name, tensor)
    return ir.Model(copy.graph, ir_version=IR_VERSION, producer_name="onward")


def _upstream(values: Sequence[ir.Value]) -> tuple[list[ir.Node], dict[ir.Value, None]]:
    """The nodes that the values depend on, each after its inputs' producers; and the graph inputs met."""
    order: list[ir.Node] = []
    done: set[ir.Node] = set()
    reached: dict[ir.Value, None] = {v: None for v in values if v.is_graph_input()}
    stack: list[tuple[ir.Node, bool]] = [(n, False) for v in reversed(values) if (n := v.producer())]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded:
            done.add(node)
            order.append(node)
            continue
        stack.append((node, True))
        for value in reversed(node.inputs):
            if value is None:
                continue
            if value.is_graph_input():
                reached[value] = None
            elif (producer := value.producer()) is not None:
                stack.append((producer, False))
    return order, reached


class _Copy:
    """The model's graph while it is filled."""

    def __init__(self, name: str, seed: int) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
        self._network = f"network {name!r}"
        self._seed = seed
        self._builder = Builder(self.graph)
        self._values: dict[ir.Value, ir.Value] = {}
        self._parameters: dict[tuple[int, str], tuple[Parameter, ir.Value]] = {}
        self._layers: dict[int, str] = {}
        self._tensor_names: set[str] = set()

    def add_inputs(self, sources: Sequence[Tensor]) -> None:
        for default, tensor in zip(_default_names("input", len(sources)), sources, strict=True):
            value = tensor.value
            if not value.is_graph_input():
                raise ConfigError(
                    f"{self._network}: input {value.name!r} is a layer's output; inputs come from nn.Input"
                )
            if value in self._values:
                raise ConfigError(f"{self._network}: the input {value.name!r} is listed twice")
            name = self._tensor_name(value.name or default)
            self._values[value] = self._builder.input(name, dtype_of(value), dims_of(value) or ())

    def require_inputs(self, reached: Mapping[ir.Value, None]) -> None:
        for value in reached:
            if value not in self._values:
                raise ConfigError(
                    f"{self._network}: an output depends on the input {value.name or '(unnamed)'!r}, "
                    "which is not among the inputs"
                )
        for value, copied in self._values.items():
            if value not in reached:
                raise ConfigError(f"{self._network}: the input {copied.name!r} reaches no output")

    def name_layers(self, nodes: Sequence[ir.Node]) -> None:
        """Give every layer its final name: its own, or the next number where another branch has that."""
        taken: set[str] = set()
        placements = {id(p.layer): p for node in reversed(nodes) if (p := placement_of(node))}
        for p in placements.values():
            if p.layer.name is not None:
                if p.name in taken:
                    raise ConfigError(
                        f"{self._network}: two layers are called {p.name!r}: layer names are unique"
                    )
                taken.add(p.name)
        for node in nodes:
            p = placement_of(node)
            if id(p.layer) in self._layers:
                continue
            name = p.name
            if p.layer.name is None:
                if name in taken:
                    name = numbered(type(p.layer).__name__.lower(), taken)
                taken.add(name)
            self._layers[id(p.layer)] = name

    def add_node(self, node: ir.Node) -> None:
        layer = self._layer_name(placement_of(node))
        name = self._builder.unique(f"{layer}/{node.op_type}")
        inputs = [None if v is None else self._operand(v) for v in node.inputs]
        outputs = []
        for i, value in enumerate(node.outputs):
            copied = ir.Value(name="" if value.name == "" else self._builder.unique_output(name, i))
            copied.type = value.type
            copied.shape = value.shape.copy() if value.shape is not None else None
            self._values[value] = copied
            outputs.append(copied)
        attributes = node.attributes.values()
        self.graph.append(
            ir.Node(node.domain, node.op_type, inputs, attributes=attributes, outputs=outputs, name=name)
        )

    def add_output(self, name: str, tensor: Tensor) -> None:
        check_name(f"{self._network}, output", name)
        self._builder.output(self._values[tensor.value], self._tensor_name(name))

    def _operand(self, value: ir.Value) -> ir.Value:
        if (known := self._values.get(value)) is not None:
            return known
        if is_parameter(value):
            copied = self._parameter(parameter_of(value))
        else:
            assert value.const_value is not None, "a value is an input, an output, a parameter or a constant"
            copied = self._builder.const(value.const_value.numpy())
        self._values[value] = copied
        return copied

    def _parameter(self, parameter: Parameter) -> ir.Value:
        key = (id(parameter.placement.layer), parameter.suffix)
        if key in self._parameters:
            known, value = self._parameters[key]
            require_same(known, parameter)
            return value
        name = f"{self._layer_name(parameter.placement)}.{parameter.suffix}"
        if name in self._tensor_names:
            raise ConfigError(f"{self._network}: {name!r} names an input and a parameter")
        shape = ir.Shape(parameter.shape)
        tensor = ir.LazyTensor(
            functools.partial(_draw, self._seed, name, parameter),
            dtype=parameter.dtype,
            shape=shape,
            cache=True,
            name=name,
        )
        value = ir.Value(name=name, type=ir.TensorType(parameter.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        self._parameters[key] = (parameter, value)
        return value

    def _layer_name(self, placement: Placement) -> str:
        return self._layers[id(placement.layer)]

    def _tensor_name(self, name: str) -> str:
        if name in self._tensor_names or name in self.graph.initializers:
            raise ConfigError(
                f"{self._network}: two tensors are called {name!r}; name inputs and outputs apart"
            )
        self._tensor_names.add(name)
        return name


def _draw(seed: int, name: str, parameter: Parameter) -> ir.TensorProtocol:
    """The first values of a parameter; large networks draw them when they are first read."""
    rng = generator(seed, name)
    dtype = numpy_dtype(parameter.dtype)
    shape = parameter.shape
    block = shape if parameter.blocks == 1 else (math.prod(shape[:-1]) // parameter.blocks, shape[-1])
    parts = [parameter.initializer.draw(rng, block, parameter.fans, dtype) for _ in range(parameter.blocks)]
    values: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return ir.tensor(np.ascontiguousarray(values).reshape(shape), dtype=parameter.dtype, name=name)

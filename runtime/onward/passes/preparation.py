"""Puts the preparation of inputs into a model's graph, and takes it out again."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onward.data.audio import Spectrogram
from onward.data.preparation import NumberPreparation, Preparation
from onward.data.table_preparation import TablePreparation
from onward.errors import ConfigError, InvalidModelError
from onward.graph import Builder, dims_of, numpy_dtype
from onward.model.weights import PREPARATION

__all__ = ["detach_preparation", "detach_table", "prepend_preparation"]

_SCOPE = PREPARATION


def prepend_preparation(model: ir.Model, preparation: Preparation) -> ir.Model:
    """The model with inputs as they are read: `Cast`, `Div`, `Sub` and `Div` before the network; of sounds,
    two `Conv` and `Log` too.

    The inputs keep their names and shapes and take the element types of the preparation. What the network
    takes becomes a value inside, named `preparation/<input>`, by which `detach_preparation` finds it. Texts
    are not part of it: the graph takes token numbers.

    Args:
        model: a model that takes prepared inputs; it is not changed.
        preparation: by the model's input names.

    Raises:
        ConfigError: the model has no input of a name, or an input that does not take floats; or channels
            differ.
    """
    model = model.clone()
    graph = model.graph
    if preparation.table is not None:
        _prepend_table(graph, preparation.table)
    for name, each in preparation.numbers.items():
        if each.empty:
            continue
        value = next((v for v in graph.inputs if v.name == name), None)
        if value is None:
            raise ConfigError(
                f"there is a preparation for input {name!r}, but the model takes "
                f"{', '.join(str(v.name) for v in graph.inputs)}"
            )
        _prepend(graph, value, each)
    return model


def detach_preparation(model: ir.Model, names: Collection[str]) -> ir.Model:
    """The model without the preparation of these inputs, as it was before `prepend_preparation`.

    Raises:
        InvalidModelError: an input's preparation is not in the graph; another tool has changed the file.
    """
    model = model.clone()
    graph = model.graph
    for name in names:
        boundary = next((v for n in graph for v in n.outputs if v.name == f"{_SCOPE}/{name}"), None)
        raw = next((v for v in graph.inputs if v.name == name), None)
        if boundary is None or raw is None or boundary.is_graph_output():
            raise InvalidModelError(
                f"the metadata say that the graph prepares input {name!r}, but it has no value "
                f"'{_SCOPE}/{name}': another tool has changed the file; train the original, or remove the "
                "entry onward.preparation to train on inputs as the graph takes them"
            )
        network = ir.Value(name=name, type=boundary.type, shape=boundary.shape)
        ir.convenience.replace_all_uses_with(boundary, network)
        node = boundary.producer()
        while node is not None and not any(v.uses() for v in node.outputs):
            operands = list(node.inputs)
            graph.remove(node, safe=True)
            for value in operands[1:]:
                if value is not None and value.is_initializer() and not value.uses():
                    graph.initializers.pop(value.name or "")
            node = operands[0].producer() if operands[0] is not None else None
        raw.name = f"{name}.raw"
        graph.inputs[graph.inputs.index(raw)] = network
    return model


def detach_table(model: ir.Model, table: TablePreparation) -> ir.Model:
    """The model without a table's preparation: one input of features.

    Raises:
        InvalidModelError: the preparation is not in the graph; another tool has changed the file.
    """
    model = model.clone()
    graph = model.graph
    boundary = next((v for n in graph for v in n.outputs if v.name == f"{_SCOPE}/{table.input}"), None)
    if boundary is None or boundary.is_graph_output():
        raise InvalidModelError(
            "the metadata say that the graph prepares a table, but it has no value "
            f"'{_SCOPE}/{table.input}': another tool has changed the file; train the original"
        )
    network = ir.Value(name=f"{_SCOPE}/{table.input}.network", type=boundary.type, shape=boundary.shape)
    ir.convenience.replace_all_uses_with(boundary, network)
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
    graph.inputs[:] = [v for v in graph.inputs if v.uses() or v.name not in table.takes]
    graph.inputs.insert(0, network)
    network.name = table.input
    return model


def _prepend_table(graph: ir.Graph, table: TablePreparation) -> None:
    network = next((v for v in graph.inputs if v.name == table.input), None)
    if network is None or network.dtype is None or network.is_graph_output():
        raise ConfigError(
            f"there is a preparation of a table for input {table.input!r}, but the model takes "
            f"{', '.join(str(v.name) for v in graph.inputs)}"
        )
    dims = dims_of(network)
    if dims is not None and (len(dims) != 2 or dims[1] != table.width):
        raise ConfigError(f"input {table.input!r} is {list(dims)}, the table has {table.width} features")
    uses = list(network.uses())
    graph.inputs.remove(network)
    network.name = f"{_SCOPE}/{table.input}.network"
    taken = {value.name: value for node in graph for value in node.outputs}
    first = dims[0] if dims else None
    g = Builder(graph)
    g.at(next(iter(graph), None))
    inputs = {}
    for name, dtype in table.takes.items():
        if name in graph.initializers or (name in taken and taken[name].is_graph_output()):
            raise ConfigError(
                f"column {name!r} has the name of a value of the model: rename the column, or say "
                "--no-preparation"
            )
        if name in taken:
            taken[name].name = g.unique(f"{name}.network")
        element = ir.DataType.STRING if dtype.kind == "O" else ir.DataType.from_numpy(dtype)
        inputs[name] = g.input(name, element, [first, len(table.names) if table.matrix else 1])
    with g.scope(f"{_SCOPE}/{table.input}"):
        prepared = table.write(g, inputs)
        if prepared.is_graph_input() or prepared.is_initializer():
            prepared = g.Identity(prepared)
        if numpy_dtype(network.dtype) != np.float32:
            prepared = g.Cast(prepared, to=int(network.dtype))
    for node, index in uses:
        node.replace_input_with(index, prepared)
    prepared.name = f"{_SCOPE}/{table.input}"
    prepared.shape = network.shape


def _write_spectrogram(g: Builder, sound: ir.Value, each: Spectrogram) -> ir.Value:
    """The same as `Spectrogram.apply`: frames and Fourier transform are one convolution."""

    def constant(name: str, array: NDArray[np.generic]) -> ir.Value:
        return g.initializer(g.unique(name), array)

    line = g.Unsqueeze(sound, constant("axes", np.array([1], np.int64)))
    parts = g.Conv(line, constant("fourier", each.fourier[:, None]), strides=[each.hop])
    bands = g.Conv(g.Mul(parts, parts), constant("bands", each.bands[:, :, None]))
    return g.Log(g.Add(bands, constant("floor", np.array(each.floor))))


def _prepend(graph: ir.Graph, value: ir.Value, each: NumberPreparation) -> None:
    name = value.name or ""
    if value.dtype is None or not value.dtype.is_floating_point():
        raise ConfigError(
            f"there is a preparation for input {name!r}, but the model takes {value.dtype}, not floats"
        )
    dims = dims_of(value)
    statistics = each.normalization
    rank = len(dims) if dims is not None else 2
    sound, network_shape = each.spectrogram, value.shape
    if sound is not None and (dims is None or rank != 3):
        raise ConfigError(f"input {name!r} takes no spectrograms [N, bands, frames], but {list(dims or ())}")
    if statistics is not None and dims is not None:
        channels = dims[1] if rank > 1 else None
        if isinstance(channels, int) and channels != len(statistics.mean):
            raise ConfigError(
                f"input {name!r} has {channels} channels, its normalisation {len(statistics.mean)}"
            )
    network_type, uses = value.dtype, list(value.uses())
    value.type = ir.TensorType(ir.DataType.from_numpy(each.dtype))
    if sound is not None and dims is not None:
        value.shape = ir.Shape([dims[0], sound.samples])
    g = Builder(graph)
    g.at(next(iter(graph), None))
    with g.scope(f"{_SCOPE}/{name}"):
        prepared = value
        if each.dtype != np.float32:
            prepared = g.Cast(prepared, to=int(ir.DataType.FLOAT))
        if each.divisor != 1:
            prepared = g.Div(prepared, g.initializer(g.unique("divisor"), np.array(each.divisor, np.float32)))
        if sound is not None:
            prepared = _write_spectrogram(g, prepared, sound)
        if statistics is not None:
            shape = (1, -1) + (1,) * (rank - 2)
            for operator, array in (("Sub", statistics.mean), ("Div", statistics.std)):
                constant = g.initializer(g.unique(operator + "/by"), array.reshape(shape))
                prepared = g.emit(operator, prepared, constant)[0]
        if numpy_dtype(network_type) != np.float32:
            prepared = g.Cast(prepared, to=int(network_type))
    for node, index in uses:
        node.replace_input_with(index, prepared)
    prepared.name = f"{_SCOPE}/{name}"
    prepared.shape = network_shape
    if value.is_graph_output():
        raise ConfigError(f"input {name!r} is an output of the model too: it cannot be prepared in the graph")

"""The standard's own form of a training step in a file: `ModelProto.training_info`, read, run and written.

Source: the ONNX specification, TrainingInfoProto. A step is the inference graph and the algorithm's graph as
one: names in either mean the same value. `update_binding` says which output replaces which initializer after
a step, `initialization` gives those that training begins with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import onnx_ir as ir

from onward.autodiff import TrainingStep
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.engine import Session, StepSession
from onward.engine.engines import EngineName
from onward.errors import ConfigError, InvalidModelError, UnsupportedError
from onward.graph import Array, TensorSpec
from onward.model import from_bytes, load, to_bytes
from onward.model.reader import TRAINING_INFO
from onward.passes import expand_onward, to_inference

__all__ = ["StoredTraining", "with_training_info"]

_ROLES = "onward.training_info"
_IR_VERSION = 7
"""The first that has training_info."""


@final
class StoredTraining:
    """The training step that a file brings along, whoever wrote it.

    Args:
        model: a model that was read from a file, or the file.
        index: which of the file's training_info, where it has several.
        engine: which engine runs it.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.

    Raises:
        ConfigError: the model has no training_info, or none of this index.
        InvalidModelError: graphs or bindings do not fit together; the message says which name.
        UnsupportedError: operators that are missing, or have no gradient where one is asked for.
    """

    def __init__(
        self,
        model: ir.Model | str | Path,
        index: int = 0,
        *,
        engine: EngineName = "auto",
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._source = load(model) if isinstance(model, str | Path) else model
        infos = self._source.meta.get(TRAINING_INFO, ())
        if not 0 <= index < len(infos):
            raise ConfigError(
                f"the model has no training_info {index}: it has {len(infos)}; onward.train.Trainer trains "
                "models without"
            )
        self._index = index
        whole = onnx.ModelProto.FromString(to_bytes(self._source))
        info = whole.training_info[index]
        self._initialization = info.initialization if info.initialization.output else None
        self._first = {each.key: each.value for each in info.initialization_binding}
        self.bindings: dict[str, str] = {each.key: each.value for each in info.update_binding}
        """For each initializer that a step changes the output that replaces it."""
        combined = _combined(whole, info, self.bindings)
        self._opsets = {each.domain: each.version for each in combined.opset_import}
        joined = from_bytes(combined.SerializeToString(), name=f"training_info {index}")
        self._session = StepSession(joined, self.bindings, engine=engine, threads=threads, options=options)
        self._check_first()
        self.roles: Mapping[str, Any] = json.loads(self._source.metadata_props.get(_ROLES, "{}"))
        """What inputs and outputs are for, as fields of `TrainingStep`, where `with_training_info` wrote it;
        else empty."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a step takes."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a step gives, besides what replaces initializers."""
        return self._session.outputs

    @property
    def state(self) -> Mapping[str, Array]:
        """The initializers that steps change, as they are now."""
        return self._session.state

    def initialize(self, inputs: Mapping[str, Array] | None = None) -> None:
        """Give the initializers of `initialization_binding` their first values; others stay.

        Args:
            inputs: of the initialization's graph, which mostly has none.

        Raises:
            InputError: inputs that do not fit.
        """
        if self._initialization is None or not self._first:
            return
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        graph = onnx.GraphProto.FromString(self._initialization.SerializeToString())
        graph.name = graph.name or "initialization"
        proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self._source.ir_version)
        session = Session(from_bytes(proto.SerializeToString(), name="initialization"))
        found = session.run(dict(inputs or {}))
        self._session.load_state({**self.state, **{name: found[out] for name, out in self._first.items()}})

    def step(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Do one step: initializers are replaced, the other outputs returned.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape.
        """
        return self._session.run(inputs)

    @property
    def model(self) -> ir.Model:
        """The model with what steps have made of its initializers, its training_info included: a copy."""
        model = self._source.clone()
        model.meta.update(self._source.meta)
        state = {name: np.array(array) for name, array in self.state.items()}
        for name, array in state.items():
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        infos = list(self._source.meta[TRAINING_INFO])
        info = onnx.TrainingInfoProto.FromString(infos[self._index])
        for tensor in info.algorithm.initializer:
            if tensor.name in state:
                tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name], tensor.name))
        infos[self._index] = info.SerializeToString()
        model.meta[TRAINING_INFO] = tuple(infos)
        return model

    def _check_first(self) -> None:
        given = () if self._initialization is None else [v.name for v in self._initialization.output]
        for name, output in self._first.items():
            if name not in self.bindings:
                raise UnsupportedError(
                    f"training_info {self._index}: initialization_binding gives {name!r} a first value, "
                    "which no step changes"
                )
            if output not in given:
                raise InvalidModelError(
                    f"training_info {self._index}: initialization_binding names {output!r}, which is no "
                    "output of the initialization"
                )


def _combined(
    whole: onnx.ModelProto, info: onnx.TrainingInfoProto, bindings: Mapping[str, str]
) -> onnx.ModelProto:
    """The inference graph and the algorithm as one model, whose state is inputs and initializers."""
    combined = onnx.ModelProto()
    combined.CopyFrom(whole)
    del combined.training_info[:]
    combined.ir_version = max(combined.ir_version, _IR_VERSION)
    graph, own = combined.graph, info.algorithm
    graph.node.extend(own.node)
    graph.initializer.extend(own.initializer)
    graph.sparse_initializer.extend(own.sparse_initializer)
    graph.value_info.extend(own.value_info)
    inputs = {v.name for v in graph.input}
    graph.input.extend(v for v in own.input if v.name not in inputs)
    outputs = {v.name for v in graph.output}
    graph.output.extend(v for v in own.output if v.name not in outputs)
    tensors = {t.name: t for t in graph.initializer}
    inputs, outputs = {v.name for v in graph.input}, {v.name for v in graph.output}
    for name, output in bindings.items():
        if name not in tensors:
            raise InvalidModelError(f"update_binding names {name!r}, which is no initializer of either graph")
        if output not in outputs:
            raise InvalidModelError(f"update_binding names {output!r}, which is no output of the algorithm")
        if name not in inputs:
            tensor = tensors[name]
            graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return combined


def with_training_info(model: ir.Model, step: TrainingStep, state: Mapping[str, Array]) -> ir.Model:
    """The inference model with a training step in its training_info, which any runtime of those can do.

    Args:
        model: what the step trains, with its current weights: `Trainer.model`.
        step: the step: `Trainer.step`.
        state: its current state: `Trainer.state`. The initialization begins with the step's own slots.

    Returns:
        The model in inference form. Metadata `onward.training_info` say what inputs and outputs of the
        algorithm are for, as fields of `TrainingStep`.

    Raises:
        UnsupportedError: the step trains other numbers than the file has, of 16 bits or quantised.
    """
    model = to_inference(model)
    weights = model.graph.initializers
    for name in (*step.parameters, *step.statistics):
        own = weights[name].const_value if name in weights else None
        if own is None or own.dtype != ir.DataType.from_numpy(state[name].dtype):
            raise UnsupportedError(
                f"weight {name!r} is trained as {state[name].dtype}, which the file does not have: a "
                "training_info changes the file's own initializers; save the step instead, see "
                "Trainer.training_model"
            )
    proto = onnx.ModelProto.FromString(to_bytes(expand_onward(step.model)))
    taken = {v.name for v in (*model.graph.inputs, *weights.values())}
    taken.update(v.name for node in model.graph.all_nodes() for v in node.outputs)
    shared = {*step.inputs, *step.parameters, *step.statistics}
    for tensor in proto.graph.initializer:
        known = weights[tensor.name].const_value if tensor.name in weights else None
        if tensor.name not in step.bindings and known is not None:
            same = known.dtype == tensor.data_type and list(known.shape.numpy()) == list(tensor.dims)
            if same and known.numpy().tobytes() == onnx.numpy_helper.to_array(tensor).tobytes():
                shared.add(tensor.name)
    names = _Renamed({name for name in taken if name is not None}, shared)
    names.rename(proto.graph.node)
    info = onnx.TrainingInfoProto()
    info.algorithm.name = "training"
    info.algorithm.node.extend(proto.graph.node)
    for tensor in proto.graph.initializer:
        if tensor.name in shared:
            continue
        if tensor.name in step.bindings:
            first = onnx.helper.make_node("Constant", [], [names(tensor.name)], value=tensor)
            info.initialization.node.append(first)
            info.initialization.output.append(
                onnx.helper.make_tensor_value_info(names(tensor.name), tensor.data_type, list(tensor.dims))
            )
            info.initialization_binding.add(key=names(tensor.name), value=names(tensor.name))
            tensor = onnx.numpy_helper.from_array(np.array(state[tensor.name]), tensor.name)
        kept = info.algorithm.initializer.add()
        kept.CopyFrom(tensor)
        kept.name = names(tensor.name)
    info.initialization.name = "initialization"
    for source, target in (
        (proto.graph.input, info.algorithm.input),
        (proto.graph.output, info.algorithm.output),
    ):
        for value in source:
            if value.name in step.bindings or value.name in shared:
                continue
            kept_value = target.add()
            kept_value.CopyFrom(value)
            kept_value.name = names(value.name)
    for name, output in step.bindings.items():
        info.update_binding.add(key=names(name), value=names(output))
    for entry in proto.opset_import:
        model.graph.opset_imports.setdefault(entry.domain, entry.version)
    roles = json.loads(step.model.metadata_props["onward.training_step"])
    del roles["bindings"]  # they are update_binding
    model.metadata_props[_ROLES] = json.dumps(_mapped(roles, names))
    model.meta[TRAINING_INFO] = (info.SerializeToString(),)
    return model


def _mapped(content: Any, names: _Renamed) -> Any:
    if isinstance(content, str):
        return names(content)
    if isinstance(content, list):
        return [_mapped(each, names) for each in content]
    if isinstance(content, dict):
        # the keys of targets and the like are names of the model's own outputs
        return {key: _mapped(each, names) for key, each in content.items()}
    return content


@final
class _Renamed:
    """Names that no value of the inference graph has, but for what both share."""

    def __init__(self, taken: set[str], shared: set[str]) -> None:
        self._taken, self._shared = taken, shared

    def __call__(self, name: str) -> str:
        if not name or name in self._shared or name not in self._taken:
            return name
        name = f"training/{name}"
        while name in self._taken:
            name += "'"
        return name

    def rename(self, nodes: Any) -> None:
        """Rename what nodes, and those in their bodies, read and write."""
        for node in nodes:
            node.name = f"training/{node.name}" if node.name else ""
            node.input[:] = [self(name) for name in node.input]
            node.output[:] = [self(name) for name in node.output]
            for attribute in node.attribute:
                for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    self.rename(body.node)
                    for value in (*body.input, *body.output, *body.value_info, *body.initializer):
                        value.name = self(value.name)

"""Onward as an ONNX backend: what `onnx.backend.test` and the public scoreboard import.

    import onnx.backend.test
    import onward.backend
    suite = onnx.backend.test.BackendTest(onward.backend, __name__)

Models are read as `onward.load` reads files, so that what passes here passes for a user's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.backend.base import Backend, BackendRep

from onward.engine import Session
from onward.engine.engines import EngineName
from onward.errors import InputError, UnsupportedError
from onward.graph import Array, infer_node
from onward.model import from_bytes

__all__ = [
    "OnwardBackend",
    "OnwardRep",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]


@final
class OnwardRep(BackendRep):
    """A model that is ready to run.

    Attributes:
        session: what runs it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run once.

        Args:
            inputs: a mapping by name, or a sequence in the order of the model's inputs without initializers;
                trailing optional ones may be left out. A single array stands for a sequence of one.
            kwargs: none are known.

        Returns:
            One entry an output: an array, a list of arrays for a sequence, None for an empty optional.

        Raises:
            InputError: too many inputs, or one that does not fit; an option that there is not.
            ShapeError: the shapes fit the declared ones but not each other.
        """
        _refuse(kwargs)
        results = self.session.run(self.feed(inputs))
        return tuple(results[spec.name] for spec in self.session.outputs)

    def feed(self, inputs: Any) -> dict[str, Any]:
        """The inputs by name."""
        if isinstance(inputs, Mapping):
            return {name: _plain(x) for name, x in inputs.items()}
        given = [inputs] if isinstance(inputs, np.ndarray) else list(map(_plain, inputs))
        specs = self.session.inputs
        if len(given) > len(specs):
            raise InputError(f"{len(given)} inputs given; the model has {len(specs)}")
        optional = {spec.name: None for spec in specs[len(given) :] if spec.kind.startswith("optional")}
        return {**optional, **{spec.name: x for spec, x in zip(specs, given, strict=False)}}


@final
class OnwardBackend(Backend):
    """The methods that the backend interface asks for; the module's functions are the same.

    Devices are CPU alone. `engine` chooses who runs a model: `compiled`, `interpreter`, or `auto`, which is
    compiled wherever llvmlite is installed.
    """

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator of a model, at its version, is there."""
        if not cls.supports_device(device):
            return False
        try:
            Session(from_bytes(model.SerializeToString()), engine="interpreter").close()
        except UnsupportedError:
            return False
        return True

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", *, engine: EngineName = "auto", **kwargs: Any
    ) -> OnwardRep:
        """Read a model and make it ready to run.

        Args:
            model: the model, with its data inside.
            device: CPU.
            engine: which engine runs it.
            kwargs: none are known; `rtol` and `atol`, which the suite's runner passes on, are its own.

        Raises:
            ConfigError: an engine that there is not.
            InputError: an option that there is not.
            InvalidModelError, ShapeError: the model is not sound.
            UnsupportedError: another device; operators are missing, all of them named.
        """
        _refuse({key: value for key, value in kwargs.items() if key not in ("rtol", "atol")})
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device!r}: only CPU is there")
        return OnwardRep(Session(from_bytes(model.SerializeToString()), engine=engine))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Prepare a model and run it once; see `prepare` and `OnwardRep.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator.

        Args:
            node: the operator.
            inputs: a mapping by name, or one array for each of the node's inputs that is not absent.
            device: CPU.
            outputs_info: element types and shapes of the outputs; inferred where left out.
            kwargs: `opset_version` of the node's domain, the newest by default, and options of `prepare`.

        Raises:
            InputError: inputs that are not arrays, or as many as the node has.
            As `prepare` and `OnwardRep.run`.
        """
        names = [name for name in dict.fromkeys(node.input) if name]
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            contents = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(contents) != len(names):
                raise InputError(f"{len(contents)} inputs given; operator {node.op_type} has {len(names)}")
            given = dict(zip(names, contents, strict=True))
        given = {name: _plain(content) for name, content in given.items()}
        model = _single(node, given, outputs_info, kwargs.pop("opset_version", None))
        return cls.prepare(model, device, **kwargs).run(given)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on a device: CPU, whatever its number."""
        return device.partition(":")[0] == "CPU"


is_compatible = OnwardBackend.is_compatible
prepare = OnwardBackend.prepare
run_model = OnwardBackend.run_model
run_node = OnwardBackend.run_node
supports_device = OnwardBackend.supports_device


def _single(
    node: onnx.NodeProto,
    inputs: Mapping[str, Array],
    outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None,
    opset: int | None,
) -> onnx.ModelProto:
    """A model of one node."""
    for name, content in inputs.items():
        if not isinstance(content, np.ndarray):
            raise InputError(f"input {name!r}: expected a NumPy array, got {type(content).__name__}")
    operands = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    standard = node.domain in ("", "ai.onnx")
    newest = onnx.defs.onnx_opset_version()
    version = opset if opset is not None else newest if standard else 1
    imports = [onnx.helper.make_opsetid(node.domain, version)]
    if not standard:
        imports.append(onnx.helper.make_opsetid("", newest))
    results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "node", operands, results)
    model = onnx.helper.make_model(graph, opset_imports=imports)
    if outputs_info is None:
        read = ir.from_proto(model)
        contents = {v: ir.tensor(inputs[v.name or ""]) for v in read.graph.inputs}
        infer_node(read.graph[0], version, contents)
        return ir.to_proto(read)
    for result, (dtype, shape) in zip(model.graph.output, outputs_info, strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        result.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, shape))
    return model


def _plain(content: Any) -> Any:
    """NumPy's scalars as arrays; tuples, which the suite has for sequences, as lists."""
    if isinstance(content, tuple | list):
        return [_plain(x) for x in content]
    return np.asarray(content) if isinstance(content, np.generic) else content


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        raise InputError(f"option {next(iter(options))!r}: there is none of this name")

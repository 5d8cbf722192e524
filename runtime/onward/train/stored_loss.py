"""The loss that a file's own training step minimises, for a trainer: what its `Gradient` is of.

Source: the ONNX specification, TrainingInfoProto, and the operator Gradient of ai.onnx.preview.training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import onnx
import onnx_ir as ir

from onward.autodiff import OPSET
from onward.errors import ConfigError, UnsupportedError
from onward.graph import Builder, Dim, dims_of, dtype_of
from onward.graph.bodies import inline
from onward.model import from_bytes, load, to_bytes, upgrade
from onward.model.reader import TRAINING_INFO
from onward.train.losses import Loss

__all__ = ["StoredLoss", "stored_steps"]

_DOMAIN = "ai.onnx.preview.training"


def stored_steps(model: ir.Model) -> int:
    """How many training steps a model brings along in its training_info."""
    return len(model.meta.get(TRAINING_INFO, ()))


@final
class StoredLoss(Loss):
    """The loss of the training step that a file brings along (`training_info`), for a trainer to minimise.

    Targets are the input that the file's loss takes besides the model's output.

    Args:
        model: a model that was read from a file, or the file.
        index: which of the file's training_info, where it has several.

    Attributes:
        of: the model's output that the loss is of.
        name: of the loss in the file.

    Raises:
        ConfigError: the model has no training_info, or none of this index.
        UnsupportedError: no single value is differentiated there, or it depends on more than one output of
            the model and one input, such as on weights that are trained.
    """

    def __init__(self, model: ir.Model | str | Path, index: int = 0) -> None:
        source = load(model) if isinstance(model, str | Path) else model
        count = stored_steps(source)
        if not 0 <= index < count:
            raise ConfigError(
                f"the model has no training_info {index}, it has {count}: name a loss of your own"
            )
        whole = onnx.ModelProto.FromString(to_bytes(source))
        algorithm = whole.training_info[index].algorithm
        where = f"training_info {index}"
        losses = {
            attribute.s.decode()
            for node in algorithm.node
            if (node.domain, node.op_type) == (_DOMAIN, "Gradient")
            for attribute in node.attribute
            if attribute.name == "y"
        }
        if len(losses) != 1:
            told = f"Gradients of {', '.join(sorted(losses))}" if losses else "no Gradient"
            raise UnsupportedError(
                f"{where} has {told}, so that no value is its loss: StoredTraining runs it"
            )
        (self.name,) = losses
        nodes, free = _behind(algorithm.node, self.name)
        outputs = {value.name: value for value in whole.graph.output}
        inputs = {value.name: value for value in algorithm.input}
        tensors = {t.name: t for t in (*whole.graph.initializer, *algorithm.initializer) if t.name in free}
        of = [name for name in free if name in outputs]
        targets = [name for name in free if name in inputs and name not in tensors]
        changed = {binding.key for binding in whole.training_info[index].update_binding}
        fixed = tensors.keys() - changed
        if len(of) != 1 or len(targets) != 1 or len(of) + len(targets) + len(fixed) != len(free):
            raise UnsupportedError(
                f"{where}: loss {self.name!r} is computed from {', '.join(sorted(free))}, not from one output"
                " and one input alone: StoredTraining runs it"
            )
        (self.of,), (target,) = of, targets
        self._target = inputs[target]
        graph = onnx.helper.make_graph(
            nodes,
            "loss",
            [outputs[self.of], self._target],
            [onnx.ValueInfoProto(name=self.name)],
            list(tensors.values()),
        )
        proto = onnx.helper.make_model(graph, ir_version=source.ir_version, opset_imports=whole.opset_import)
        self._body = upgrade(from_bytes(proto.SerializeToString(), name=f"the loss of {where}"), OPSET).graph

    def output(self, output: ir.Value) -> ir.Value:
        """See `onward.autodiff.Loss`."""
        return output

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        """See `onward.autodiff.Loss`."""
        value = self._body.inputs[1]
        dims = dims_of(value)
        rows = (dims_of(output) or (None,))[0]
        return dtype_of(value), () if not dims else (
            rows if not isinstance(dims[0], int) else dims[0],
            *dims[1:],
        )

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        """See `onward.autodiff.Loss`."""
        (loss,) = inline(g, self._body, [output, target])
        return loss if dims_of(loss) == () else g.ReduceSum(loss, keepdims=0)


def _behind(nodes: Sequence[onnx.NodeProto], name: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that a value is computed by, in order, and the values that none of them gives."""
    chosen: list[onnx.NodeProto] = []
    needed = {name}
    for node in reversed(nodes):
        if needed & set(node.output):
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise UnsupportedError(
                    f"loss {name!r}: node {node.name!r}, operator {node.op_type}, has a body"
                )
            chosen.append(node)
            needed -= set(node.output)
            needed |= {each for each in node.input if each}
    return chosen[::-1], needed

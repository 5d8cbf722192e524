"""Executes a graph node by node with the operators' NumPy kernels: the meaning of every other engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, LimitError, OnwardError, ShapeError, UnsupportedError
from onward.graph.memory import too_large
from onward.graph.op import bind
from onward.graph.origin import opset_of
from onward.graph.outlook import asks_for_much, refusal

__all__ = ["Evaluator", "Observer"]

Observer: TypeAlias = Callable[[ir.Node, tuple[Any, ...]], None]
"""Called after each node with the node and its outputs."""


@final
@dataclass(frozen=True, slots=True)
class _Instruction:
    node: ir.Node
    kernel: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]
    much: bool


_ABSENT = 0
"""The slot of absent optional inputs: it always holds None."""


@final
class Evaluator:
    """A graph in canonical form, bound to NumPy kernels.

    A tensor is an array, a sequence a list of arrays, an empty optional None.

    Args:
        graph: nodes in topological order. It is read once; later changes to it are not seen.
        kernel_of: what runs an operator; its `kernel` by default.

    Raises:
        UnsupportedError: operators that are unknown at their opset, all of them at once.
        InvalidModelError: a node's attributes do not fit its operator, or it uses a value of another graph.
    """

    def __init__(
        self, graph: ir.Graph, kernel_of: Callable[[Any], Callable[..., Any]] = attrgetter("kernel")
    ) -> None:
        self._kernel_of = kernel_of
        self._opsets = dict(graph.opset_imports)
        self._slots: dict[ir.Value, int] = {}
        self.inputs = tuple(self._slot(value) for value in graph.inputs)
        self.constants: dict[int, Any] = {}
        self.initializers: dict[str, int] = {}
        for name, value in graph.initializers.items():
            self.initializers[name] = slot = self._slot(value)
            if value.const_value is not None:
                self.constants[slot] = value.const_value.numpy()
        self._program = self._bound(graph)
        self.outputs = tuple(self._slots.get(value, _ABSENT) for value in graph.outputs)

    def run(
        self, given: Mapping[int, Any], outputs: Sequence[int], observer: Observer | None = None
    ) -> tuple[Any, ...]:
        """Run the graph.

        Args:
            given: contents by slot: of the inputs, and of initializers that are replaced.
            outputs: the slots wanted.
            observer: called after each node of this graph; not for those of graphs inside.

        Raises:
            ShapeError: an operator could not take its operands; names the node, operator and opset.
            LimitError: a result would take more memory than there is.
        """
        memory: list[Any] = [None] * (len(self._slots) + 1)
        for contents in (self.constants, given):
            for slot, content in contents.items():
                memory[slot] = content
        with np.errstate(all="ignore"):
            for step in self._program:
                operands = [memory[i] for i in step.inputs]
                opset = self._opsets.get(step.node.domain, 1)
                if (reason := refusal(step.node, opset, operands, step.much)) is not None:
                    raise LimitError(f"{self._where(step.node)}: {reason}")
                try:
                    results = step.kernel(*operands)
                    del operands
                except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, MemoryError) as error:
                    raise self._failure(step.node, error) from error
                except OnwardError as error:
                    raise type(error)(f"{self._where(step.node)}: {error}") from error
                if not isinstance(results, tuple):
                    results = (results,)
                for slot, content in zip(step.outputs, results, strict=False):
                    plain = content is None or isinstance(content, list)
                    memory[slot] = content if plain else np.asarray(content)
                    # a view that repeats elements takes none of the memory that its size says
                    if not plain and (reason := too_large(memory[slot].nbytes)) is not None:
                        raise LimitError(f"{self._where(step.node)}: {reason}")
                if observer is not None:
                    observer(step.node, tuple(memory[i] for i in step.outputs))
                for slot in step.frees:
                    memory[slot] = None
        return tuple(memory[slot] for slot in outputs)

    def _slot(self, value: ir.Value) -> int:
        return self._slots.setdefault(value, len(self._slots) + 1)

    def _bound(self, graph: ir.Graph) -> list[_Instruction]:
        nodes = list(graph)
        last_use: dict[ir.Value, int] = {}
        for i, node in enumerate(nodes):
            last_use.update({v: i for v in node.inputs if v is not None})
            last_use.update({v: i for v in node.outputs if v not in last_use})
        kept = set(graph.outputs) | set(graph.initializers.values())
        frees: dict[int, list[int]] = {}
        problems: list[str] = []
        operators: list[tuple[ir.Node, Any]] = []
        for node in nodes:
            try:
                operators.append((node, bind(node, self._opsets.get(node.domain, 0))))
            except UnsupportedError as error:
                problems.append(f"node {node.name!r}: {error}")
        if problems:
            raise UnsupportedError("this graph cannot run:\n  " + "\n  ".join(problems))
        for node, _ in operators:
            for value in node.inputs:
                if value is not None and value not in self._slots:
                    raise InvalidModelError(
                        f"node {node.name!r}, operator {node.op_type}: {value.name!r} is not a value of its "
                        "graph made before it"
                    )
            for value in node.outputs:
                self._slot(value)
        for value, i in last_use.items():
            if value not in kept:
                frees.setdefault(i, []).append(self._slot(value))
        return [
            _Instruction(
                node,
                self._kernel_of(operator),
                tuple(_ABSENT if v is None else self._slot(v) for v in node.inputs),
                tuple(self._slot(v) for v in node.outputs[: operator.output_count]),
                tuple(frees.get(i, ())),
                asks_for_much(node),
            )
            for i, (node, operator) in enumerate(operators)
        ]

    def _where(self, node: ir.Node) -> str:
        opset = opset_of(node, self._opsets.get(node.domain, 0))
        return f"node {node.name!r}, operator {node.op_type}, opset {opset}"

    def _failure(self, node: ir.Node, error: Exception) -> ShapeError:
        reason = str(error).strip().splitlines()
        kind = LimitError if isinstance(error, MemoryError) else ShapeError
        return kind(f"{self._where(node)}: {reason[0] if reason else type(error).__name__}")

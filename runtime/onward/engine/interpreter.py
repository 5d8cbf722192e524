"""Executes a graph node by node with the operators' NumPy kernels: the oracle of every other engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError, ShapeError, UnsupportedError
from onward.graph import Array, bind

__all__ = ["Interpreter", "Observer"]

Observer: TypeAlias = Callable[[ir.Node, tuple[Array, ...]], None]
"""Called after each node with the node and its outputs."""


@final
@dataclass(frozen=True, slots=True)
class _Instruction:
    node: ir.Node
    kernel: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]


_ABSENT = 0
"""The slot of absent optional inputs: it always holds None."""


@final
class Interpreter:
    """A graph, bound to NumPy kernels.

    Args:
        graph: nodes in topological order. It is read once; later changes to it are not seen.

    Raises:
        UnsupportedError: operators that are unknown at their opset, all of them at once.
        InvalidModelError: a node's attributes do not fit its operator.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._opsets = dict(graph.opset_imports)
        self._slots: dict[ir.Value, int] = {}
        self._slot_count = 1
        self._inputs = {value.name or "": self._slot(value) for value in graph.inputs}
        self._constants: dict[int, Array] = {}
        self._initializers: dict[str, int] = {}
        for name, value in graph.initializers.items():
            self._initializers[name] = slot = self._slot(value)
            if value.const_value is not None:
                self._constants[slot] = value.const_value.numpy()
        self._program = self._compile(list(graph))
        self._outputs = {value.name or "": self._slots.get(value, _ABSENT) for value in graph.outputs}

    def _slot(self, value: ir.Value) -> int:
        if value not in self._slots:
            self._slots[value] = self._slot_count
            self._slot_count += 1
        return self._slots[value]

    def _compile(self, nodes: Sequence[ir.Node]) -> list[_Instruction]:
        last_use: dict[ir.Value, int] = {}
        for i, node in enumerate(nodes):
            last_use.update({v: i for v in node.inputs if v is not None})
            last_use.update({v: i for v in node.outputs if v not in last_use})
        kept = set(self._graph.outputs) | set(self._graph.initializers.values())
        frees: dict[int, list[int]] = {}
        problems: list[str] = []
        program: list[_Instruction] = []
        operators: list[tuple[ir.Node, Any]] = []
        for node in nodes:
            try:
                operators.append((node, bind(node, self._opsets.get(node.domain, 0))))
            except UnsupportedError as error:
                problems.append(f"node {node.name!r}: {error}")
        if problems:
            raise UnsupportedError("this graph cannot run:\n  " + "\n  ".join(problems))
        for node, _ in operators:
            for value in node.outputs:
                self._slot(value)
        for value, i in last_use.items():
            if value not in kept:
                frees.setdefault(i, []).append(self._slot(value))
        for i, (node, operator) in enumerate(operators):
            program.append(
                _Instruction(
                    node,
                    operator.kernel,
                    tuple(_ABSENT if v is None else self._slot(v) for v in node.inputs),
                    tuple(self._slot(v) for v in node.outputs[: operator.output_count]),
                    tuple(frees.get(i, ())),
                )
            )
        return program

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Iterable[str] | None = None,
        *,
        observer: Observer | None = None,
    ) -> dict[str, Array]:
        """Run the graph.

        Args:
            inputs: an array for each graph input; those that are initializers too may be left out.
            outputs: names of the graph outputs wanted; all by default.
            observer: called after each node.

        Raises:
            ShapeError: an operator could not take its operands; names the node, operator and opset.
        """
        memory: list[Any] = [None] * self._slot_count
        for slot, array in self._constants.items():
            memory[slot] = array
        for name, array in inputs.items():
            memory[self._inputs[name]] = array
        with np.errstate(all="ignore"):
            for step in self._program:
                try:
                    results = step.kernel(*[memory[i] for i in step.inputs])
                except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
                    raise self._failure(step.node, error) from error
                except OnwardError as error:
                    raise type(error)(f"{self._where(step.node)}: {error}") from error
                if not isinstance(results, tuple):
                    results = (results,)
                for slot, array in zip(step.outputs, results, strict=False):
                    memory[slot] = np.asarray(array) if not isinstance(array, list) else array
                if observer is not None:
                    observer(step.node, tuple(memory[i] for i in step.outputs))
                for slot in step.frees:
                    memory[slot] = None
        wanted = self._outputs if outputs is None else outputs
        return {name: memory[self._outputs[name]] for name in wanted}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace initializers by arrays, which are not copied; names, shapes and dtypes are the caller's."""
        for name, array in arrays.items():
            self._constants[self._initializers[name]] = array

    def close(self) -> None:
        """Nothing: it holds no threads."""

    def _where(self, node: ir.Node) -> str:
        opset = self._opsets.get(node.domain, 0)
        return f"node {node.name!r}, operator {node.op_type}, opset {opset}"

    def _failure(self, node: ir.Node, error: Exception) -> ShapeError:
        reason = str(error).strip().splitlines()
        return ShapeError(f"{self._where(node)}: {reason[0] if reason else type(error).__name__}")

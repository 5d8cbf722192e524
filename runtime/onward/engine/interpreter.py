"""The interpreter: evaluates a graph in canonical form with NumPy. It is the oracle of other engines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import onnx_ir as ir

from onward.graph import Array, BodyOp, Evaluator, Observer, RunBody, canonical_graph

__all__ = ["Interpreter", "Observer"]


@final
class Interpreter:
    """A graph, bound to NumPy kernels.

    Args:
        graph: nodes in topological order, of any opset. It is read once; later changes to it are not seen.
        run_body: runs the bodies of operators such as Loop; NumPy does by default.

    Raises:
        UnsupportedError: operators that are unknown at their opset, all of them at once.
        InvalidModelError: a node's attributes do not fit its operator.
    """

    def __init__(self, graph: ir.Graph, run_body: RunBody | None = None) -> None:
        def kernel_of(operator: Any) -> Callable[..., Any]:
            if run_body is not None and isinstance(operator, BodyOp):
                return functools.partial(operator.run, run_body)
            kernel: Callable[..., Any] = operator.kernel
            return kernel

        self._evaluator = Evaluator(canonical_graph(graph), kernel_of)
        self._inputs = {
            v.name or "": slot for v, slot in zip(graph.inputs, self._evaluator.inputs, strict=True)
        }
        self._outputs = {
            v.name or "": slot for v, slot in zip(graph.outputs, self._evaluator.outputs, strict=True)
        }

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Iterable[str] | None = None,
        *,
        observer: Observer | None = None,
    ) -> dict[str, Any]:
        """Run the graph.

        Args:
            inputs: contents of each graph input; those that are initializers too may be left out.
            outputs: names of the graph outputs wanted; all by default.
            observer: called after each node.

        Raises:
            ShapeError: an operator could not take its operands; names the node, operator and opset.
        """
        wanted = list(self._outputs if outputs is None else outputs)
        given = {self._inputs[name]: content for name, content in inputs.items()}
        results = self._evaluator.run(given, [self._outputs[name] for name in wanted], observer)
        return dict(zip(wanted, results, strict=True))

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace initializers by arrays, which are not copied; names, shapes and dtypes are the caller's."""
        for name, array in arrays.items():
            self._evaluator.constants[self._evaluator.initializers[name]] = array

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Nothing: it takes inputs of any shape as they come."""

    def close(self) -> None:
        """Nothing: it holds no threads."""

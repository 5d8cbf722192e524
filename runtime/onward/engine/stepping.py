"""Runs a graph over and over with state that feeds back: some outputs replace inputs at the next run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import numpy as np
import onnx_ir as ir

from onward.autodiff import expand_gradients
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.engine.engines import EngineName, resolve
from onward.engine.interpreter import Interpreter
from onward.engine.session import check_inputs, named_arrays
from onward.errors import InputError, TrainingError
from onward.graph import Array, TensorSpec, is_float, spec_of

if TYPE_CHECKING:
    from onward.engine.compiled import CompiledEngine

__all__ = ["StepSession"]


@final
class StepSession:
    """A training step with its parameters, optimizer state and running statistics.

    Args:
        model: the step. Its state inputs have initializers of the same names, which are the initial state.
        bindings: for each state input the output that replaces it after a run.

        engine: which engine runs it.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.

    Raises:
        UnsupportedError: operators are missing, all of them named.
        TrainingError: a binding names an input or output that the model does not have.
        ConfigError: an engine that there is not.
    """

    def __init__(
        self,
        model: ir.Model,
        bindings: Mapping[str, str],
        *,
        engine: EngineName = "auto",
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
    ) -> None:
        model = expand_gradients(model)
        graph = model.graph
        given, names = {v.name for v in graph.inputs}, {v.name for v in graph.outputs}
        for source, target in bindings.items():
            if source not in graph.initializers or source not in given or target not in names:
                raise TrainingError(f"state {source!r} → {target!r} is not in the training step")
        self._bindings = dict(bindings)
        initial = {name: _initial(graph.initializers[name]) for name in bindings}
        self._engine: Interpreter | CompiledEngine
        self._fed = list(bindings)
        if resolve(engine) == "compiled":
            from onward.engine.compiled import CompiledEngine

            # what is not of floats, such as a count, is fed to plans like an input
            floats = {n: output for n, output in bindings.items() if is_float(graph.initializers[n])}
            self._engine = CompiledEngine(model, floats, threads, options)
            fixed = self._engine.fixed
            self._state = {n: fixed[n] if n in floats else np.array(initial[n]) for n in bindings}
            self._fed = [name for name in bindings if name not in floats]
        else:
            self._engine = Interpreter(graph)
            self._state = {name: np.array(array) for name, array in initial.items()}
        self.inputs: tuple[TensorSpec, ...] = tuple(
            spec_of(v) for v in graph.inputs if v.name not in graph.initializers
        )
        replaced = set(bindings.values())
        self.outputs: tuple[TensorSpec, ...] = tuple(
            spec_of(v) for v in graph.outputs if v.name not in replaced
        )

    @property
    def state(self) -> Mapping[str, Array]:
        """The current state by input name. Arrays may be overwritten by the next run: copy to keep them."""
        return self._state

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Replace the whole state.

        Raises:
            TrainingError: a name is missing, or an array has another shape or dtype than the step's.
        """
        if missing := [name for name in self._bindings if name not in state]:
            raise TrainingError(f"the state lacks {missing[0]!r} and {len(missing) - 1} others")
        for name in self._bindings:
            old, new = self._state[name], state[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                raise TrainingError(
                    f"state {name!r}: expected {old.dtype}{list(old.shape)}, got {new.dtype}{list(new.shape)}"
                )
        if not isinstance(self._engine, Interpreter):
            self._engine.load({name: state[name] for name in self._bindings if name not in self._fed})
        self._state |= {name: np.array(state[name]) for name in self._fed}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one step: the state advances, the other outputs are returned.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape. The state is unchanged.
            ShapeError: shapes fit the declared ones but not each other. The state is unchanged.
        """
        inputs = named_arrays(self.inputs, inputs)
        if clash := [name for name in inputs if name in self._bindings]:
            raise InputError(f"{clash[0]!r} is state of the training step, not an input")
        check_inputs(self.inputs, inputs)
        results = self._engine.run({**inputs, **{name: self._state[name] for name in self._fed}})
        self._state |= {name: results.pop(self._bindings[name]) for name in self._fed}
        return results


def _initial(value: ir.Value) -> Array:
    if value.const_value is None:
        raise TrainingError(f"state {value.name!r} has no initial value")
    return value.const_value.numpy()

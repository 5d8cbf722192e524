"""A model ready to run: named arrays in, named arrays out, checked at the border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.autodiff import expand_gradients
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.engine.batches import Batches
from onward.engine.engines import EngineName, make_engine
from onward.engine.interpreter import Interpreter, Observer
from onward.engine.weights import Weight, aligned, share_initializers
from onward.errors import ConfigError, InputError
from onward.graph import Array, TensorSpec, spec_of

__all__ = ["Session", "check_inputs", "named_arrays"]


@final
class Session:
    """Runs a model's forward pass.

    Args:
        model: a model, something with a `model` attribute (a network of `onward.nn`), or the path of an .onnx
            file; it is not changed.
        engine: which engine runs it.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.
        background: do not wait for the compiler. Until the plan for new input shapes is ready, the
            interpreter answers, so the same input may give other last bits before and after. An error of the
            compiler is raised by the next run with those shapes. A plan that the cache has is used at once.
        workspaces: how many runs with inputs of one shape may go on at once, each in memory of its own;
            others wait. None: as many as the process may use cores.
        batches: of the compiled engine. "exact": each size of a batch gets a plan of its own, made when it
            first comes. "split": where the first axis of all inputs and outputs has one name, and the graph
            proves that samples along it are independent, a batch of a new size is run at once in parts whose
            sizes are powers of two, at most 11 plans for all sizes; one that repeats gets its own plan in the
            background. A sample's results may differ between sizes by rounding (long products are summed
            in another order in larger batches; most models give the same bits), so with "split" the last
            bits of a batch may change once, when its own plan is ready.

    Threads may share a session. Runs that go on at once use one thread each where cores are taken; the
    results have the same bits as those of runs one after the other. Sessions in one process read one copy of
    weights that are equal. A session may be used as a context manager, which closes it at the end.

    Raises:
        InvalidModelError: the file is malformed or unsafe to open.
        UnsupportedError: operators are missing, all of them named.
        ConfigError: an engine or a choice of batches that there is not; fewer than 1 workspace.
    """

    def __init__(
        self,
        model: ir.Model | str | Path | Any,
        *,
        engine: EngineName = "auto",
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
        background: bool = False,
        workspaces: int | None = None,
        batches: Batches = "exact",
    ) -> None:
        self._model, shared = _opened(model)
        graph = self._model.graph
        self._engine = make_engine(
            self._model,
            engine,
            threads,
            options,
            background=background,
            workspaces=workspaces,
            batches=batches,
        )
        del shared  # the engine has them
        self._loaded: dict[str, Array] = {}
        given = graph.initializers
        self.inputs: tuple[TensorSpec, ...] = tuple(spec_of(v) for v in graph.inputs if v.name not in given)
        self.defaults: tuple[TensorSpec, ...] = tuple(spec_of(v) for v in graph.inputs if v.name in given)
        """Inputs that may be left out: their initializers stand then."""
        self.outputs: tuple[TensorSpec, ...] = tuple(spec_of(v) for v in graph.outputs)
        self.metadata: Mapping[str, str] = dict(self._model.metadata_props)
        """What the file says of itself, by key."""

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        observer: Observer | None = None,
    ) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: an array for each input, of exactly its dtype and of a shape that fits; for an input with
                a default only where another value is wanted in this run.
            outputs: names of the outputs wanted; all by default, in the model's order.
            observer: called after each node with the node and its outputs; the interpreter runs then.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape; an output is unknown.
            ShapeError: the shapes fit the declared ones but not each other.
        """
        inputs = named_arrays(self.inputs, inputs)
        check_inputs(self.inputs, inputs, self.defaults)
        if outputs is not None:
            known = [spec.name for spec in self.outputs]
            if unknown := [name for name in outputs if name not in known]:
                raise InputError(f"no output named {unknown[0]!r}; the outputs are {', '.join(known)}")
        if observer is not None:
            interpreter = Interpreter(self._model.graph)
            interpreter.load(self._loaded)
            return interpreter.run(inputs, outputs, observer=observer)
        return self._engine.run(inputs, outputs)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Plan, compile and pack weights for inputs of these shapes now, so that no later run has to.

        Args:
            shapes: by name of each input that is a tensor, without open dimensions. The compiled
                engine keeps 16 sets of them, those that were used last; 48 where batches are split.

        Raises:
            InputError: an input is missing or unknown, or its shape does not fit the declared one.
            ShapeError: the shapes fit the declared ones but not each other.
        """
        for spec in self.inputs:
            if spec.kind != "tensor":
                continue
            if spec.name not in shapes:
                raise InputError(f"the shape of input {spec.name!r} is missing; expected {spec}")
            if not spec.admits(shapes[spec.name]):
                raise InputError(f"input {spec.name!r}: expected {spec}, got {list(shapes[spec.name])}")
        names = {spec.name for spec in (*self.inputs, *self.defaults)}
        if unknown := [name for name in shapes if name not in names]:
            raise InputError(f"no input named {unknown[0]!r}; the inputs are {', '.join(sorted(names))}")
        self._engine.prepare(shapes)

    def load_weights(self, weights: Mapping[str, Array], *, copy: bool = True) -> None:
        """Replace initializers by arrays of the same dtype and shape. Runs in progress end with the old ones.

        Args:
            weights: arrays by name.
            copy: False: the session may read the arrays where they are, such as the state of a `StepSession`.
                Whoever changes one does so while the session does not run, and loads it again.

        Raises:
            InputError: an unknown name, or an array that does not fit.
        """
        for name, array in weights.items():
            value = self._model.graph.initializers.get(name)
            if value is None or value.const_value is None:
                raise InputError(f"no weight named {name!r}")
            old = value.const_value
            if tuple(old.shape.numpy()) != array.shape or old.dtype.numpy() != array.dtype:
                raise InputError(
                    f"weight {name!r}: expected {old.dtype.numpy()}{list(old.shape.numpy())}, "
                    f"got {array.dtype}{list(array.shape)}"
                )
        arrays = {name: aligned(array) for name, array in weights.items()} if copy else weights
        self._loaded.update(arrays)
        self._engine.load(arrays)

    def close(self) -> None:
        """Release threads, after background planning that has begun; a second call does nothing."""
        self._engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(model: ir.Model | str | Path | Any) -> tuple[ir.Model, list[Weight]]:
    """A model; one that is read here has the weights that sessions share for its own."""
    model = getattr(model, "model", model)
    if isinstance(model, ir.Model):
        return expand_gradients(model), []
    if not isinstance(model, str | Path):
        raise ConfigError(f"a model is an onnx_ir.Model, a network or a path, not {type(model).__name__}")
    from onward.model import load

    opened = expand_gradients(load(model))
    return opened, share_initializers(opened)


def named_arrays(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Inputs by name, NumPy's scalars as arrays.

    Raises:
        InputError: it is no mapping.
    """
    if not isinstance(inputs, Mapping):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"inputs are arrays by name ({names}), got {type(inputs).__name__}")
    return {name: np.asarray(a) if isinstance(a, np.generic) else a for name, a in inputs.items()}


def check_inputs(
    specs: Sequence[TensorSpec], inputs: Mapping[str, Array], defaults: Sequence[TensorSpec] = ()
) -> None:
    """Refuse inputs that do not fit their specs; those of `defaults` may be absent.

    Raises:
        InputError: names the first input that is missing, unknown, or of the wrong dtype or shape.
    """
    for spec in specs:
        if spec.name not in inputs:
            raise InputError(f"input {spec.name!r} is missing; expected {spec}")
    for spec in (*specs, *defaults):
        if spec.name not in inputs:
            continue
        content = inputs[spec.name]
        if spec.kind == "tensor":
            _check_tensor(spec, content)
            continue
        if content is None and spec.kind.startswith("optional"):
            continue
        if spec.kind.endswith("sequence") != isinstance(content, list):
            raise InputError(f"input {spec.name!r}: expected {spec}, got {type(content).__name__}")
        for array in content if isinstance(content, list) else [content]:
            _check_tensor(spec, array)
    names = {spec.name for spec in (*specs, *defaults)}
    if unknown := [name for name in inputs if name not in names]:
        raise InputError(f"no input named {unknown[0]!r}; the inputs are {', '.join(sorted(names))}")


def _check_tensor(spec: TensorSpec, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {spec.name!r}: expected a NumPy array, got {type(array).__name__}")
    if array.dtype != spec.dtype and not (spec.dtype == object and array.dtype.kind in "OUST"):
        raise InputError(f"input {spec.name!r}: expected dtype {spec.dtype}, got {array.dtype}")
    if not spec.admits(array.shape):
        raise InputError(f"input {spec.name!r}: expected {spec}, got shape {list(array.shape)}")

"""The choice of an engine: what sessions ask of one, and which they get."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, TypeAlias

import onnx_ir as ir

from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.engine.batches import Batches
from onward.engine.interpreter import Interpreter
from onward.errors import ConfigError
from onward.graph import Array

__all__ = ["Engine", "EngineName", "make_engine", "resolve"]

EngineName: TypeAlias = Literal["auto", "compiled", "interpreter"]
"""`auto` is `compiled` where the compiler is installed, else `interpreter`."""


class Engine(Protocol):
    """Runs a graph whose inputs have been checked; from several threads at once, too."""

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Run once; the arrays returned are the caller's."""

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Do for inputs of these shapes, which have been checked, what the first run would have to."""

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace initializers; arrays need not be copied."""

    def close(self) -> None:
        """Release threads; a second call does nothing."""


def make_engine(
    model: ir.Model,
    name: EngineName,
    threads: int | None,
    options: CompileOptions = DEFAULT_OPTIONS,
    *,
    background: bool = False,
    workspaces: int | None = None,
    batches: Batches = "exact",
) -> Engine:
    """The engine for a model without state.

    Args:
        model: the model.
        name: which engine.
        threads: of the compiled engine; None: as many as the process may use.
        options: of the compiled engine, where speed and accuracy part.
        background: whether the compiled engine plans in the background.
        workspaces: runs of one plan that the compiled engine lets go on at once.
        batches: whether the compiled engine may run a batch in parts.

    Raises:
        ConfigError: an unknown name, `compiled` where llvmlite is missing, or a senseless number.
        UnsupportedError: operators are missing, all of them named.
    """
    if resolve(name) == "interpreter":
        return Interpreter(model.graph)
    from onward.engine.compiled import CompiledEngine

    return CompiledEngine(
        model, None, threads, options, background=background, workspaces=workspaces, batches=batches
    )


def resolve(name: EngineName) -> Literal["compiled", "interpreter"]:
    """Which engine a name means here; raises `ConfigError` for one that there is not."""
    if name not in ("auto", "compiled", "interpreter"):
        raise ConfigError(f"engine {name!r}: choose auto, compiled or interpreter")
    available = importlib.util.find_spec("llvmlite") is not None
    if name == "compiled" and not available:
        raise ConfigError("the compiled engine needs llvmlite, which is not installed; choose interpreter")
    return "compiled" if available and name != "interpreter" else "interpreter"

"""Train and serve any ONNX model, wherever Python runs.

    network = onward.nn.zoo.lenet5()
    trainer = onward.Trainer(network, "cross_entropy", "adam", metrics=["accuracy"])
    trainer.fit(images, epochs=5)
    onward.export(trainer.model, "lenet5.onnx")

Everything here is loaded when it is first used: importing the package alone is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onward import _deferred
from onward.version import __version__

if TYPE_CHECKING:
    from onward import (
        autodiff,
        backend,
        data,
        engine,
        errors,
        graph,
        keras,
        model,
        nn,
        parallel,
        passes,
        runs,
        sklearn,
        train,
        verify,
    )
    from onward.engine import Session
    from onward.model import load, save
    from onward.train import Trainer
    from onward.verify import compare, export

__all__ = [
    "Session",
    "Trainer",
    "__version__",
    "autodiff",
    "backend",
    "compare",
    "data",
    "engine",
    "errors",
    "export",
    "graph",
    "keras",
    "load",
    "model",
    "nn",
    "parallel",
    "passes",
    "runs",
    "save",
    "sklearn",
    "train",
    "verify",
]

_deferred.defer()

_HOMES = {
    "Session": "engine",
    "Trainer": "train",
    "compare": "verify",
    "export": "verify",
    "load": "model",
    "save": "model",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Serves a repository of ONNX models over gRPC, with answers checked by a second engine.

`python -m onward_server --repository DIR` runs a server. In Python: `serve` until a signal, `running` inside
an event loop, `ServerThread` and `ServerProcess` from synchronous code. `onward_server.dataplane` does the
same work without a wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward_server.model_settings import CrossCheckSettings, ModelSettings, Tolerance
    from onward_server.processes import ServerProcess, ServerThread
    from onward_server.server import RunningServer, running, serve
    from onward_server.settings import ServerSettings
    from onward_server.settings_files import load_settings

__all__ = [
    "CrossCheckSettings",
    "ModelSettings",
    "RunningServer",
    "ServerProcess",
    "ServerSettings",
    "ServerThread",
    "Tolerance",
    "load_settings",
    "running",
    "serve",
]

_HOMES = {
    "CrossCheckSettings": "model_settings",
    "ModelSettings": "model_settings",
    "RunningServer": "server",
    "ServerProcess": "processes",
    "ServerSettings": "settings",
    "ServerThread": "processes",
    "Tolerance": "model_settings",
    "load_settings": "settings_files",
    "running": "server",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the data plane must be importable without gRPC."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

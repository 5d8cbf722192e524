"""What the server says about itself, on both ports."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from onward_server.settings import ServerSettings

__all__ = ["extensions", "server_version"]


def server_version() -> str:
    """The version of the installed package."""
    try:
        return version("onward")
    except PackageNotFoundError:
        return "unknown"


def extensions(settings: ServerSettings) -> list[str]:
    """The protocol extensions that work with these settings, and no others: clients believe them."""
    return [
        "classification",
        "model_configuration",
        "model_repository" if settings.model_control == "explicit" else "model_repository(index)",
        "parameters",
        "schedule_policy",
        "statistics",
        "logging",
        *(["system_shared_memory"] if settings.shared_memory else []),
        *(["trace"] if settings.trace is not None else []),
        *(["binary_tensor_data"] if settings.http_listen else []),
        "onward.v1.cross_check",
    ]

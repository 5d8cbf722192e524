"""`onward serve`: the server as a command of the `onward` command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    repository: Annotated[
        Path | None,
        typer.Argument(help="A folder of <name>/<version>/model.onnx.", show_default=False),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port, port 0 for a free one (127.0.0.1:8001).")
    ] = None,
    http_listen: Annotated[
        str | None, typer.Option(help="host:port of the HTTP port; none without it.")
    ] = None,
    engine: Annotated[
        Literal["onward", "onnxruntime"] | None, typer.Option(help="The engine that answers (onward).")
    ] = None,
    cross_check: Annotated[
        str | None, typer.Option(help="off, sample:RATE, every or shadow (sample:0.05).")
    ] = None,
    on_mismatch: Annotated[
        Literal["log", "fail", "prefer-onnxruntime"] | None, typer.Option(help="Default: log.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of each engine in one request (1).")] = None,
    instances: Annotated[int | None, typer.Option(help="Workers of a version at most (2).")] = None,
    isolation: Annotated[
        Literal["process", "thread"] | None, typer.Option(help="Where models run (process).")
    ] = None,
    model_control: Annotated[
        Literal["none", "poll", "explicit"] | None, typer.Option(help="How models come and go (none).")
    ] = None,
    queue_size: Annotated[int | None, typer.Option(help="Requests of a version that may wait (256).")] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Largest request (64 MiB).")] = None,
    drain_timeout: Annotated[float | None, typer.Option(help="Seconds to finish after SIGTERM (30).")] = None,
    shutdown_pause: Annotated[
        float | None, typer.Option(help="Seconds between NOT_SERVING and refusing (0).")
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Print the settings, check the repository, and end.")
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Default: info.")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Lines of the log (text).")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Warnings and errors alone: --log-level warning.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more: --log-level debug.")] = False,
) -> None:
    """Serve a repository of models over gRPC and HTTP (Open Inference Protocol v2) until SIGTERM or SIGINT.

    SIGHUP reads the settings, the repository and the certificates again. When requests are taken, one JSON
    line says so. Every option can also be set in the environment
    (ONWARD_SERVER_REPOSITORY, ...) or in the file.

    \b
    Examples:
      onward serve models/
      onward serve models/ --listen 127.0.0.1:0 --cross-check every
      onward serve --config server.toml --log-level debug
    """
    from onward_server.__main__ import main

    if quiet + verbose + (log_level is not None) > 1:
        print("error: give one of --quiet, --verbose and --log-level", file=sys.stderr)
        raise typer.Exit(2)
    level = "warning" if quiet else "debug" if verbose else log_level
    values = {
        "--config": config,
        "--repository": repository,
        "--listen": listen,
        "--http-listen": http_listen,
        "--engine": engine,
        "--cross-check": cross_check,
        "--on-mismatch": on_mismatch,
        "--threads": threads,
        "--instances": instances,
        "--isolation": isolation,
        "--model-control": model_control,
        "--queue-size": queue_size,
        "--max-message-bytes": max_message_bytes,
        "--drain-timeout": drain_timeout,
        "--shutdown-pause": shutdown_pause,
        "--log-level": level,
        "--log-format": log_format,
    }
    arguments = [part for name, value in values.items() if value is not None for part in (name, str(value))]
    raise typer.Exit(main([*arguments, *(["--check-config"] if check_config else [])]))

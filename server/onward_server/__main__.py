"""`python -m onward_server`: serve a model repository until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

from onward.errors import OnwardError
from onward_server.logs import JsonLines
from onward_server.server import RunningServer, serve
from onward_server.settings import ServerSettings
from onward_server.settings_files import load_settings, unknown_in_environment

__all__ = ["main"]

_EXIT_DRAINED = 0
_EXIT_CUT_SHORT = 1
_EXIT_NOT_STARTED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal.

    Returns:
        0 after a complete drain, 1 when requests were cut short, 2 when the server could not start.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        _start_log(settings)
        if options.check_config:
            return _check_config(settings)
        for text in unknown_in_environment(os.environ):
            logging.getLogger("onward_server").warning("environment: %s", text)
        logging.getLogger("onward_server").info("settings: %s", _printed(settings))
        finished = _run(settings, lambda: _settings_again(options))
    except OnwardError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_NOT_STARTED
    if not finished:
        print("error: requests were still running after the drain timeout", file=sys.stderr, flush=True)
        # A computation inside an engine cannot be interrupted, and the interpreter would wait for it.
        os._exit(_EXIT_CUT_SHORT)
    return _EXIT_DRAINED


def _settings(options: argparse.Namespace) -> ServerSettings:
    return load_settings(options.config, **_overrides(options))


def _settings_again(options: argparse.Namespace) -> ServerSettings:
    settings = _settings(options)
    logging.getLogger().setLevel(settings.log_level.upper())
    return settings


def _start_log(settings: ServerSettings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


def _printed(settings: ServerSettings, indent: int | None = None) -> str:
    text = settings.model_dump_json(indent=indent, exclude={"keys": {"__all__": {"sha256"}}})
    # who fetches from a URL, and with which password
    return re.sub(r"://[^/@\s\"]*@", "://…@", text)


def _check_config(settings: ServerSettings) -> int:
    """Print the settings without secrets, and what is wrong with the repository; opens no model."""
    from onward_server.dataplane.repository import scan

    print(_printed(settings, indent=2))
    if settings.tls is not None:
        from onward_server.tls import ssl_context

        ssl_context(settings.tls)
    for text in unknown_in_environment(os.environ):
        print(f"warning: environment: {text}", file=sys.stderr)
    found = scan(settings.repository)
    for text in _without_model(settings, {entry.name for entry in found}):
        print(f"warning: {text}", file=sys.stderr)
    wrong = [
        f"model {entry.name} version {entry.version or '-'}: {entry.problem}"
        for entry in found
        if entry.problem
    ]
    if settings.training is not None and not _can_be_written(settings.training.folder):
        wrong.append(f"training.folder {settings.training.folder}: it cannot be made or written")
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    return _EXIT_NOT_STARTED if wrong else _EXIT_DRAINED


def _without_model(settings: ServerSettings, names: Set[str]) -> list[str]:
    """What is said of settings that name models which the repository does not have."""
    targets = {f"aliases.{alias}": target.partition("/")[0] for alias, target in settings.aliases.items()}
    if settings.model_control == "explicit":
        targets |= {f"startup_models: {name}": name for name in settings.startup_models if name != "*"}
    return [f"{which}: the repository has no model {n!r}" for which, n in targets.items() if n not in names]


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that is there, may be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _run(settings: ServerSettings, read_again: Callable[[], ServerSettings]) -> bool:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        finished = runner.run(serve(settings, on_listening=_announce, read_again=read_again))
    # The loop restored the default handlers: a late signal would turn a complete drain into a kill.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return finished


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _announce(server: RunningServer) -> None:
    # What was imported and loaded stays: a collection that walks through all of it takes 100 ms and more.
    gc.collect()
    gc.freeze()
    event = {
        "event": "listening",
        "address": server.address,
        "port": server.port,
        "models": server.plane.names,
        "http_address": server.http_address,
    }
    print(json.dumps(event), flush=True)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name in ServerSettings.model_fields
    }
    check: dict[str, Any] = {}
    if options.cross_check is not None:
        policy, _, rate = options.cross_check.partition(":")
        check["policy"] = policy
        if rate:
            check["rate"] = rate
    if options.on_mismatch is not None:
        check["on_mismatch"] = options.on_mismatch
    given.pop("cross_check", None)
    return {**given, "cross_check": check} if check else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onward-server",
        description="Serve a repository of ONNX models over gRPC (Open Inference Protocol v2).",
        epilog="Every option can also be set in the environment (ONWARD_SERVER_REPOSITORY, ...) or in a TOML "
        "file; options come before the environment, the environment before the file. When requests are "
        'taken, one JSON line is printed: {"event": "listening", "address": ..., "port": ..., "models": []}.',
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="TOML file with settings")
    add("--repository", type=Path, metavar="DIR", help="folder of <name>/<version>/model.onnx")
    add("--listen", metavar="ADDRESS", help="host:port, port 0 for a free one (127.0.0.1:8001)")
    add("--http-listen", metavar="ADDRESS", help="host:port of the HTTP port; none without it")
    add("--engine", choices=["onward", "onnxruntime"], help="the engine that answers (onward)")
    add("--cross-check", metavar="POLICY", help="off, sample[:RATE], every, shadow (sample:0.05)")
    add("--on-mismatch", choices=["log", "fail", "prefer-onnxruntime"], help="default: log")
    add("--threads", type=int, metavar="N", help="threads of each engine in one request (1)")
    add("--instances", type=int, metavar="N", help="workers of a version at most (2)")
    add("--isolation", choices=["process", "thread"], help="where models run (process)")
    add("--model-control", choices=["none", "poll", "explicit"], help="how models come and go (none)")
    add("--queue-size", type=int, metavar="N", help="requests of a version that may wait (256)")
    add("--max-message-bytes", type=int, metavar="N", help="largest request (64 MiB)")
    add("--drain-timeout", type=float, metavar="S", help="seconds to finish after SIGTERM (30)")
    add("--shutdown-pause", type=float, metavar="S", help="seconds between NOT_SERVING and refusing (0)")
    add("--check-config", action="store_true", help="print the settings, check the repository, and end")
    add("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")
    add("--log-format", choices=["text", "json"], help="default: text")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The application: its commands, those that other packages add, and what becomes of errors."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from onward.cli import convert, doctor, evaluate, export, inspect, new, predict, report, train, tune, verify
from onward.cli.verbosity import with_verbosity
from onward.errors import OnwardError, VerificationError

__all__ = ["application", "main"]

FAILED, MISUSED, INTERNAL, INTERRUPTED = 1, 2, 70, 130
"""Exit codes: a verification failed; bad use or input; a defect of Onward (EX_SOFTWARE); Ctrl-C."""

_GROUP = "onward.commands"
_SIBLINGS = {"serve": "onward_server.cli:command", "client": "onward_client.cli:app"}
"""The commands of the packages in the same source tree, for when nothing is installed."""


@final
class _Commands(TyperGroup):
    """Turns errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except OnwardError as error:
            if ctx.params.get("debug"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(FAILED if isinstance(error, VerificationError) else MISUSED) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and not ctx.params.get("debug"):
                print(f"error: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
                raise typer.Exit(MISUSED) from None
            if type(error).__module__.startswith("typer."):  # wrong options
                with _told_once():
                    raise
            if ctx.params.get("debug"):
                raise
            if isinstance(error, MemoryError):
                print(
                    f"error: not enough memory{f' ({error})' if str(error) else ''}; make the model, the "
                    "data or the batch smaller",
                    file=sys.stderr,
                )
                raise typer.Exit(MISUSED) from None
            text = " ".join(str(error).split())[:500]
            print(
                f"internal error: {type(error).__name__}: {text}\n"
                "This is a defect of Onward; `onward --debug …` shows where it happened.",
                file=sys.stderr,
            )
            raise typer.Exit(INTERNAL) from None


def application() -> typer.Typer:
    """The command-line application with every command that is installed."""
    app = typer.Typer(
        name="onward",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def onward(
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
        files: Annotated[
            list[Path] | None,
            typer.Option(
                "--import",
                metavar="FILE",
                help="A Python file that registers operators of your own; repeatable.",
            ),
        ] = None,
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the version and stop.", callback=_show_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        """Train, check, export and serve ONNX models.

        \b
        Exit codes:
          0    done
          1    two engines disagree (verify, export, train), a converted file is worse than it may be
               (convert), or doctor found a fault
          2    a mistake in the command, a file or the data; the last line says which
          70   a defect of Onward
          130  interrupted

        \b
        Examples:
          onward train lenet5 --data digits --epochs 12
          onward evaluate runs/digits-lenet5-1/model.onnx
          onward verify runs/digits-lenet5-1/model.onnx --backward
          onward serve models/
          onward --import my_ops.py train my_model.onnx --data digits
        """
        if files:
            from onward.graph import import_file  # here, for `--help` loads no engine

            for file in files:
                import_file(file)

    for name, command in (
        ("new", new.command),
        ("train", train.command),
        ("tune", tune.command),
        ("evaluate", evaluate.command),
        ("predict", predict.command),
        ("report", report.command),
        ("export", export.command),
        ("convert", convert.command),
        ("verify", verify.command),
        ("inspect", inspect.command),
        ("doctor", doctor.command),
        ("version", _version),
    ):
        settings = predict.SETTINGS if command is predict.command else None
        app.command(name, context_settings=settings)(with_verbosity(command))
    for name, plugin in _plugins():
        if isinstance(plugin, typer.Typer):
            app.add_typer(plugin, name=name)
        else:
            app.command(name)(plugin)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0; 1 where a verification failed; 2 for bad use or input; 70 for a defect; 130 after Ctrl-C.
    """
    application()(args=None if arguments is None else list(arguments), prog_name="onward")


def _told_once() -> contextlib.AbstractContextManager[None]:
    """Lets one of several ranks tell an error."""
    from onward.parallel import together  # here, for `--help` loads no engine

    return together(lambda error: MISUSED)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"onward {_own_version()}")
        raise typer.Exit


def _version() -> None:
    """Show the versions of Onward and of what it stands on.

    \b
    Example:
      onward version
    """
    for package in ("onward", "numpy", "onnx", "onnx-ir", "onnxruntime", "llvmlite", "grpcio"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = _own_version() if package == "onward" else "not installed"
        print(f"{package} {version}")
    print(f"python {sys.version.split()[0]}")


def _own_version() -> str:
    import onward

    return onward.__version__


def _plugins() -> Iterator[tuple[str, Callable[..., Any] | typer.Typer]]:
    """Commands of other packages: entry points, and the siblings in a source tree."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=_GROUP)}
    for name, place in sorted({**_SIBLINGS, **found}.items()):
        module, _, attribute = place.partition(":")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        try:
            yield name, getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            yield name, _missing(name, str(error))


def _missing(name: str, reason: str) -> Callable[[], None]:
    def command() -> None:
        from onward.errors import ConfigError

        raise ConfigError(f"the command {name!r} cannot be loaded: {reason}")

    command.__doc__ = f"Not available: {reason}"
    return command

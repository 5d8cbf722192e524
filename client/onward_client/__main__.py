"""`onward-client`, and `python -m onward_client`: the commands, which need typer beside the library."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit; code 2 where typer is missing."""
    try:
        from onward_client.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print("error: the commands need typer: pip install 'onward-client[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app(prog_name="onward-client")


if __name__ == "__main__":
    main()

"""Writes docs/api.md: every public name of every public package with its first line of documentation.

`python scripts/api.py` writes the file; with `--check` it says whether the file is what it would write. What
cannot carry a docstring (a constant, a type alias) keeps the line that the page has for it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "docs" / "api.md"
PACKAGES = (
    "onward",
    "onward.nn",
    "onward.nn.zoo",
    "onward.data",
    "onward.model",
    "onward.train",
    "onward.runs",
    "onward.keras",
    "onward.sklearn",
    "onward.verify",
    "onward.parallel",
    "onward.federated",
    "onward.engine",
    "onward.backend",
    "onward.autodiff",
    "onward.passes",
    "onward.graph",
    "onward.errors",
    "onward_client",
    "onward_server",
)
HEAD = """# Public names

Every name that a package's `__all__` lists, with its first line of documentation; the rest is in the \
docstrings. `scripts/api.py` writes this page.
"""


def main() -> int:
    """Write the page, or with `--check` compare it."""
    before = FILE.read_text("utf-8")
    text = "\n".join([HEAD, *(_section(name, _kept(before, name)) for name in PACKAGES)])
    if "--check" in sys.argv[1:]:
        if before != text:
            print("docs/api.md is not what the code says: run `python scripts/api.py`", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(text, "utf-8")
    return 0


def _kept(page: str, package: str) -> dict[str, str]:
    section = page.partition(f"\n## {package}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, flags=re.MULTILINE))


def _section(package: str, kept: dict[str, str]) -> str:
    module = importlib.import_module(package)
    rows = [f"| `{name}` | {_line(module, name, kept)} |" for name in sorted(module.__all__)]
    return "\n".join(
        [f"## {package}", "", _first(module.__doc__), "", "| name | what it is |", "|---|---|", *rows, ""]
    )


def _line(module: ModuleType, name: str, kept: dict[str, str]) -> str:
    value = getattr(module, name)
    documented = inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value)
    line = _first(inspect.getdoc(value)).replace("|", "\\|") if documented else kept.get(name, "")
    if not line:
        sys.exit(
            f"{module.__name__}.{name} has neither a docstring nor a line in docs/api.md: write one there"
        )
    return line


def _first(doc: str | None) -> str:
    return " ".join((doc or "").strip().split("\n\n", 1)[0].split())


if __name__ == "__main__":
    sys.exit(main())

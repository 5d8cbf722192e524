"""Every block of code on the pages for users runs, in the order of its page, in an empty folder.

A ```python block is executed, all of a page's in one namespace; of a ```console block each line that begins
with `$` is run, `onward` in this process. A block that cannot be run says why, in a comment before it:
`<!-- not run: reason -->`. The pages for developers show parts of source files and are left out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from onward.cli import main

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"(<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>python|console)\n(?P<text>.*?)^```$", re.M | re.S
)
PAGES = sorted(
    page
    for page in DOCS.glob("*.md")
    if page.name not in ("adding_an_operator.md", "adding_a_kernel.md", "architecture.md")
)


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, what it is, and why it is not run, if it is not."""

    line: int
    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(line, found["kind"], found["text"], found["why"])


def run_console(line: str) -> None:
    """Run one command of a console block."""
    words = shlex.split(line)
    if words[0] != "onward":
        subprocess.run(["bash", "-c", line], check=True)
        return
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words[1:])
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == 0, f"`{line}` ended with {code}: {out.getvalue()[-2000:]}{err.getvalue()[-2000:]}"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.why is None for b in blocks(p))], ids=lambda p: p.stem
)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    space: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.why is not None:
            continue
        if block.kind == "python":
            source = "\n" * (block.line - 1) + block.text
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, str(page), "exec"), space)
            continue
        for line in block.text.splitlines():
            if line.startswith("$ ") and line != "$ pip install onward":
                run_console(line[2:])


def test_what_is_not_run_says_why() -> None:
    reasons = [block.why for page in PAGES for block in blocks(page) if block.why is not None]
    assert all(len(reason.split()) > 2 for reason in reasons)
    assert len(reasons) < 40


def test_links_lead_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_site_has_every_page() -> None:
    text = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r": (\S+\.md)$", text, flags=re.M))
    have = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "decisions" not in page.parts}
    assert listed == have

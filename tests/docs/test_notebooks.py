"""Each notebook runs from its first cell to its last, in a kernel of its own and an empty folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def _executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The notebook's cells of code, with what they gave."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(folder)}}, kernel_name="python3"
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_charts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = _executed(path, tmp_path, monkeypatch)
    plotted = [cell for cell in cells if cell["source"].rstrip().endswith(".plot()")]  # type: ignore[attr-defined]
    assert plotted
    for cell in plotted:
        shown = [output["data"]["text/html"] for output in cell["outputs"] if "data" in output]  # type: ignore[attr-defined]
        assert any("<polyline" in text for text in shown)


def test_notebooks_are_kept_without_what_they_gave() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)

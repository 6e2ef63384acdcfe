"""The notebook runs from top to bottom, shows its curves, and is committed without outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "examples" / "train_and_plot.ipynb"


def test_it_is_committed_without_outputs() -> None:
    cells = json.loads(PATH.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_it_runs_and_shows_its_curves(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="extra dev")
    nbformat = pytest.importorskip("nbformat", reason="extra dev")
    nbclient = pytest.importorskip("nbclient", reason="extra dev")
    notebook = nbformat.read(PATH, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source.startswith("STEPS = 90")
    code[0].source = 'STEPS, IMAGES, RUNS = 3, 120, "runs"'
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=150, resources=place).execute()
    curves, pictures, table = code[-3:]
    drawn = {name: len(lines) for name, lines in _lines_of(tmp_path).items()}
    assert drawn == {"vanilla": 3, "recycled": 3}
    assert [_kinds(cell) for cell in (curves, pictures)] == [{"image/png"}, {"image/png"}]
    [shown] = [output.data["text/markdown"] for output in table.outputs]
    assert [row.split(" | ")[0] for row in shown.splitlines()[2:]] == ["vanilla", "recycled"]


def _lines_of(folder: Path) -> dict[str, list[str]]:
    """The training lines that each run's curves are drawn from."""
    return {
        file.parent.name: [line for line in file.read_text().splitlines() if '"train"' in line]
        for file in folder.glob("runs/*/metrics.jsonl")
    }


def _kinds(cell: Any) -> set[str]:
    """The kinds of picture that a cell shows."""
    return {kind for out in cell.outputs for kind in out.get("data", ()) if "image" in kind}

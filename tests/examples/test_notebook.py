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
    curves, pictures, table = (shown(cell) for cell in code[-3:])
    steps = [curve["x"] for curve in curves if curve["x"] and curve.get("showlegend")]
    assert steps == [[1, 2, 3], [1, 2, 3]]
    assert all(None not in curve["y"] for curve in curves) and len(curves) == 4
    assert pictures[0]["type"] == "image"
    assert table[0]["cells"]["values"][0] == ["vanilla", "recycled"]


def shown(cell: Any) -> list[dict[str, Any]]:
    """The traces of the figure that a cell shows."""
    kind = "application/vnd.plotly.v1+json"
    [figure] = [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]
    traces: list[dict[str, Any]] = figure["data"]
    return traces

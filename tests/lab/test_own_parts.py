"""A network and images of one's own, through what follows training: analyses, export, studies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conadv.lab.analysis.run.analyse import analyse_run
from conadv.lab.analysis.run.analyses import ANALYSES, AnalysisSettings
from conadv.lab.study.worker import Worker
from conadv.trainer.evaluation.export import export_run, read_metadata
from conadv.trainer.evaluation.model_card import loading_code
from support.parts import NAMED
from support.runs import quietly, tiny
from support.studies import TINY_IMAGES, prepared, study

OVERRIDES = [f"{name}={value}" for name, value in NAMED.items()]
FEW = AnalysisSettings(
    images=16,
    gap_images=16,
    eigenvalues=1,
    trace_probes=1,
    radii=(0.05,),
    directions=1,
    line_points=3,
    plane_points=0,
    epsilons=(4 / 255,),
    pgd_steps=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "run"
    quietly(tiny(*OVERRIDES, "data.crop_padding=0", "train.steps=2"), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ANALYSES)
def test_analyses(name: str, run: Path) -> None:
    found = analyse_run(run, only=[name], settings=FEW, again=True)
    assert found["analyses"][name]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_exports(suffix: str, run: Path, tmp_path: Path) -> None:
    target = export_run(run, tmp_path / f"model{suffix}")
    space: dict[str, Any] = {}
    exec(loading_code(read_metadata(target), target), space)
    assert space["predict"](torch.rand(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.slow
def test_a_study(tmp_path: Path) -> None:
    images = {name: x for name, x in TINY_IMAGES.items() if "synthetic" not in name}
    settings = {**images, **NAMED, "data.options": {}, "train.steps": 2}
    folder, _ = prepared(tmp_path, study(settings=settings, tuning__trials=1, final__seeds=[0]))
    Worker(folder.root, console=Console(quiet=True)).work()
    results = list(folder.root.rglob("result.json"))
    assert results and all(NAMED["model.name"] in path.read_text() for path in results)

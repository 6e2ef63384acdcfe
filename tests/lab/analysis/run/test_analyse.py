"""Analysing a run folder: what is written, what is skipped, what an interruption leaves."""

import importlib.util
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conadv.cli import main
from conadv.errors import CheckpointError, RunFolderError
from conadv.lab.analysis import (
    Agreement,
    generalisation_gap,
    landscape_line,
    perturbation_agreement,
)
from conadv.lab.analysis.run import analyses
from conadv.lab.analysis.run.analyse import analyse_run
from conadv.lab.analysis.run.analyses import ANALYSES, AnalysisSettings
from conadv.lab.analysis.run.old_gradients import spread, verdict
from conadv.lab.analysis.run.stale_pairs import choose_pairs
from conadv.trainer.build import make_attack
from conadv.trainer.checkpoint.load_run import load_run
from conadv.trainer.evaluation.evaluate import evaluate_run
from support.runs import quietly, tiny

SMALL = AnalysisSettings(
    images=16,
    eigenvalues=1,
    trace_probes=2,
    radii=(0.1,),
    directions=2,
    line_points=3,
    plane_points=3,
    epsilons=(4 / 255, 8 / 255),
    pgd_steps=2,
    corruptions=("gaussian_noise", "contrast"),
    severities=(1, 5),
)
QUICK = ("gap", "landscape", "robustness", "corruptions", "staleness", "gradients")
"""Without the Hessian, which takes seconds to get going."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysed") / "run"
    settings = ("checkpoint.every_steps=2", "checkpoint.keep=9", "hardware.precision=fp32")
    quietly(tiny(*settings, "method.schedule=lookahead", "evaluation.robust_steps=0"), folder)
    return folder


@pytest.fixture
def run(trained: Path) -> Path:
    (trained / "analysis.json").unlink(missing_ok=True)
    return trained


def results(found: dict[str, Any]) -> dict[str, Any]:
    return {name: entry["result"] for name, entry in found["analyses"].items()}


def test_figures_are_those_of_the_analyses(run: Path) -> None:
    found = analyse_run(run, only=QUICK, settings=SMALL)
    assert json.loads((run / "analysis.json").read_text()) == found
    assert list(found["analyses"]) == [*QUICK]
    assert (found["format"], found["version"], found["run"]) == ("conadv-analysis", 1, "tiny")
    for entry in found["analyses"].values():
        assert entry["step"] == 6 and entry["checkpoint"] == "last" and entry["device"] == "cpu"
        assert entry["torch"] == torch.__version__ and entry["seconds"] >= 0
    result = results(found)
    saved = load_run(run)
    cpu = torch.device("cpu")
    train = list(saved.splits.train().batches(100, cpu))
    test = list(saved.splits.test().batches(100, cpu))
    gap = generalisation_gap(saved.model, train, test, branch="clean")
    assert result["gap"]["loss_gap"] == pytest.approx(gap.loss_gap, abs=1e-6)
    assert result["gap"]["accuracy_gap"] == pytest.approx(gap.accuracy_gap)
    assert (result["gap"]["train"]["images"], result["gap"]["test"]["images"]) == (48, 16)
    evaluated = evaluate_run(run, steps=2, images=16, epsilon=8 / 255)
    curves = result["robustness"]["curves"]
    assert [(c["branch"], c["attack"], c["steps"]) for c in curves] == [
        ("clean", "fgsm", 1),
        ("clean", "pgd", 2),
        ("adversarial", "fgsm", 1),
        ("adversarial", "pgd", 2),
    ]
    assert curves[0]["accuracies"][1] == evaluated["fgsm_accuracy"]
    assert curves[1]["accuracies"][1] == evaluated["pgd_accuracy"]
    assert curves[0]["clean_accuracy"] == evaluated["test_accuracy"]
    lines = result["landscape"]["lines"]
    subset = [next(iter(saved.splits.train(16).batches(100, cpu)))]
    expected = landscape_line(saved.model, subset, at=(-1, 0, 1), seed=lines[1]["seed"])
    assert lines[1]["losses"] == pytest.approx(expected.losses, rel=1e-5)
    assert len(lines) == 2 and lines[0]["images"] == 16
    assert len(result["landscape"]["plane"]["losses"]) == 3
    assert set(result["corruptions"]["accuracies"]["contrast"]) == {"1", "5"}
    assert result["corruptions"]["clean"] == gap.test.accuracy


@pytest.mark.skipif(importlib.util.find_spec("curvlinops") is None, reason="extra sharpness")
def test_sharpness(run: Path) -> None:
    entry = analyse_run(run, only=["sharpness"], settings=SMALL)["analyses"]["sharpness"]
    hessian, sam = entry["result"]["hessian"], entry["result"]["sam"]
    assert len(hessian["eigenvalues"]) == 1 and hessian["images"] == sam["images"] == 16
    assert hessian["parameters"] > 70_000
    assert entry["settings"]["split"] == "train" and entry["settings"]["branch"] == "clean"
    # The top eigenvector bends most: no direction bends more, the gradient's neither.
    tiny_step = replace(SMALL, radii=(1e-2,), split="train")
    point = analyse_run(run, only=["sharpness"], settings=tiny_step)["analyses"]["sharpness"]
    sam = point["result"]["sam"]
    bend = 2 * (sam["points"][0]["sharpness"] - 1e-2 * sam["gradient_norm"]) / 1e-4
    assert bend < 1.1 * hessian["eigenvalues"][0]


def test_without_curvlinops_the_rest_is_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyses, "can_do_hessians", lambda: False)
    found = analyse_run(run, only=["sharpness"], settings=SMALL)["analyses"]["sharpness"]
    assert found["result"]["hessian"] is None and found["result"]["sam"]["points"]
    assert "[sharpness]" in found["result"]["note"]
    # Once it is installed the analysis counts as another one.
    assert found["settings"]["hessian"] is False


# -- what is there already ---------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Put quick stand-ins in the place of analyses; returns what was run."""
    ran: list[str] = []

    def stand_in(name: str):
        def go(request: Any) -> dict[str, Any]:
            ran.append(name)
            return {"number": len(ran), "odd": float("inf")}

        return go

    for name in names:
        monkeypatch.setitem(ANALYSES, name, replace(ANALYSES[name], run=stand_in(name)))
    return ran


def test_what_is_done_is_skipped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch, "gap", "landscape")
    analyse_run(run, only=["gap"])
    first = (run / "analysis.json").read_bytes()
    assert b"Infinity" not in first and b'"odd": null' in first
    assert ran == ["gap"]
    analyse_run(run, only=["gap"])
    assert ran == ["gap"] and (run / "analysis.json").read_bytes() == first
    analyse_run(run, only=["landscape", "gap"])
    assert ran == ["gap", "landscape"]
    analyse_run(run, only=["gap"], again=True)
    assert ran == ["gap", "landscape", "gap"]


def test_other_settings_or_weights_are_done_anew(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch, "gap", "landscape")
    analyse_run(run, only=["gap", "landscape"])
    analyse_run(run, only=["gap", "landscape"], settings=AnalysisSettings(images=7))
    assert ran == ["gap", "landscape", "landscape"]  # the gap has a number of its own
    analyse_run(run, only=["gap"], settings=AnalysisSettings(branch="adversarial"))
    assert ran[3:] == ["gap"]
    analyse_run(run, only=["gap"], checkpoint="step_00000004.pt")
    assert ran[4:] == ["gap"]
    entry = json.loads((run / "analysis.json").read_text())["analyses"]["gap"]
    assert (entry["step"], entry["settings"]["branch"]) == (4, "clean")
    analyse_run(
        run, only=["gap"], settings=AnalysisSettings(batch=5), checkpoint="step_00000004.pt"
    )
    assert ran[5:] == []  # how many images go through at once changes no figure


def test_an_interruption_costs_one_analysis(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch, "gap", "landscape", "robustness")
    good = ANALYSES["landscape"]

    def stop(request: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(ANALYSES, "landscape", replace(good, run=stop))
    names = ["robustness", "landscape", "gap"]
    with pytest.raises(KeyboardInterrupt):
        analyse_run(run, only=names)
    assert list(json.loads((run / "analysis.json").read_text())["analyses"]) == ["gap"]
    monkeypatch.setitem(ANALYSES, "landscape", good)
    analyse_run(run, only=names)
    assert ran == ["gap", "landscape", "robustness"]


# -- staleness ---------------------------------------------------------------------------------


def agreement(folder: Path, old: int, new: int, key: str, **changes: Any) -> Agreement:
    """From the library: in training mode, in the recipe's micro-batches of 8."""
    models, saved = [], load_run(folder)
    for step in (old, new):
        state = torch.load(folder / f"checkpoints/step_{step:08d}.pt", weights_only=True)
        weights = {k.removeprefix("module."): v for k, v in state["trainer"][key].items()}
        weights.pop("n_averaged", None)
        models.append(load_run(folder).model.train())
        models[-1].load_state_dict(weights)
    attack = replace(make_attack(saved.recipe, saved.facts), **changes)
    batches = list(saved.splits.train(16).batches(8, saved.device))
    return perturbation_agreement(models[0], models[1], batches, attack)


def test_staleness_between_checkpoints(run: Path) -> None:
    found = results(analyse_run(run, only=["staleness"], settings=SMALL))["staleness"]
    assert [(p["from_step"], p["to_step"], p["tau"]) for p in found["pairs"]] == [
        (2, 4, 2),
        (4, 6, 2),
        (2, 6, 4),
    ]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {m["step"]: m["learning_rate"] for m in lines if m["kind"] == "train"}
    assert found["pairs"][1]["learning_rate"] == pytest.approx((rates[5] + rates[6]) / 2)
    assert found["attack"]["branch"] == "adversarial" and found["attack"]["mode"] == "train"
    assert found["logged"] is None and "note" not in found
    expected = agreement(run, 2, 6, "model", branch="adversarial")
    assert found["pairs"][2]["cosine"] == pytest.approx(expected.cosine, abs=1e-9)
    assert found["pairs"][2]["same_sign"] == expected.same_sign
    assert 0 < expected.cosine < 1


def test_a_logged_agreement_is_put_together(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    last = "checkpoints/step_00000006.pt"
    (copy / last).write_bytes((run / last).read_bytes())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["agreement"] = line["step"] / 10 if line["step"] > 1 else None
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = results(analyse_run(copy, only=["staleness"], settings=SMALL))["staleness"]
    assert found["logged"]["mean"] == pytest.approx(0.4)  # of steps 2 to 6
    assert found["logged"]["lowest"] == 0.2
    assert found["pairs"] == [] and "checkpoint.every_steps" in found["note"]


def test_pairs_are_spread_over_the_distance() -> None:
    steps = [0, 1, 2, 3, 4, 5, 6, 7]
    every = choose_pairs(steps, 100)
    assert len(every) == 28 and every[0] == (0, 1) and every[-1] == (0, 7)
    few = choose_pairs(steps, 5)
    assert few[0] == (0, 1) and few[-1] == (0, 7) and len(set(few)) == 5
    distances = [b - a for a, b in few]
    assert distances == sorted(distances)
    assert choose_pairs(steps, 1) == [(0, 1)]
    assert choose_pairs([3], 5) == []


def test_vanilla_and_averaged_weights(tmp_path: Path) -> None:
    """A model without branches; and staleness is that of the weights that were trained."""
    settings = ("method.schedule=vanilla", "train.ema_decay=0.9", "hardware.precision=fp32")
    kept = ("checkpoint.every_steps=3", "checkpoint.keep=9", "optimizer.lr=0.5")
    folder = tmp_path / "run"
    quietly(tiny(*settings, *kept), folder)
    result = results(analyse_run(folder, only=QUICK, settings=SMALL))
    assert [c["branch"] for c in result["robustness"]["curves"]] == ["clean", "clean"]
    assert result["staleness"]["attack"]["branch"] is None
    pair = result["staleness"]["pairs"][-1]
    steps = pair["from_step"], pair["to_step"]
    trained, averaged = agreement(folder, *steps, "model"), agreement(folder, *steps, "ema")
    assert trained.cosine < averaged.cosine - 0.01
    assert pair["cosine"] == pytest.approx(trained.cosine, abs=1e-9)


# -- old gradients -----------------------------------------------------------------------------


def test_the_step_between_old_and_fresh_gradients_is_the_runs_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("method.schedule=vanilla", "hardware.precision=fp32", "optimizer.lr=0.5")
    quietly(tiny(*settings, "checkpoint.every_steps=1", "checkpoint.keep=9"), folder)
    random = torch.get_rng_state()
    found = results(analyse_run(folder, only=["gradients"], settings=SMALL))["gradients"]
    assert torch.equal(torch.get_rng_state(), random)
    assert [row["step"] for row in found["steps"]] == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = {m["step"]: m["learning_rate"] for m in lines if m["kind"] == "train"}
    weights = {}
    for step in range(1, 7):
        state = torch.load(folder / f"checkpoints/step_{step:08d}.pt", weights_only=True)
        matrices = [v.flatten() for v in state["trainer"]["model"].values() if v.ndim > 1]
        weights[step] = torch.cat(matrices)
    for row in found["steps"][:-1]:
        step = row["step"]
        assert row["learning_rate"] == rates[step + 1]
        way = (weights[step + 1] - weights[step]).norm() / weights[step].norm()
        assert row["moved"] == pytest.approx(float(way), rel=1e-5)
        assert row["micro_batches"] == 2
    # After the last step its own images and rate once more.
    assert found["steps"][-1]["learning_rate"] == rates[6]
    assert found["verdict"] == verdict(found["steps"])


def test_the_verdict_is_in_plain_words() -> None:
    rows = [{"step": step, "own": own} for step, own in ((1, 0.2), (5, 0.3), (9, 0.6))]
    assert verdict(rows).startswith("copies of weights should not be used at step 1:")
    assert verdict(rows[1:]).endswith("copies of weights may be used")
    assert "at steps 1, 5:" in verdict([rows[0], {"step": 5, "own": -0.1}])
    assert "batch.micro_batch" in verdict([{"step": 1, "own": None}])


def test_checkpoints_are_spread_with_the_last_one_among_them() -> None:
    assert spread([1, 2, 3, 4, 5, 6], 3) == [2, 4, 6]
    assert spread([1, 2, 3, 4, 5], 2) == [2, 5]
    assert spread([7], 8) == [7] and spread([], 8) == []


# -- what cannot be ----------------------------------------------------------------------------


def test_what_cannot_be(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        analyse_run(tmp_path)
    with pytest.raises(ValueError, match="there are gap, sharpness"):
        analyse_run(run, only=["gap", "sharpnes"])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        analyse_run(run, checkpoint="step_00000099.pt")
    with pytest.raises(RunFolderError, match="clean and adversarial"):
        analyse_run(run, only=["gap"], settings=AnalysisSettings(branch="advers"))
    for text in ("{", "[]", '{"format": "other"}', '{"format": "conadv-analysis", "version": 99}'):
        (run / "analysis.json").write_text(text)
        with pytest.raises(RunFolderError, match="Move it away"):
            analyse_run(run, only=["gap"])


@pytest.mark.parametrize(
    "odd",
    [
        {"images": 0},
        {"split": "validation"},
        {"plane_points": 4},
        {"line_points": 2},
        {"reach": 0.0},
        {"batch": 0},
        {"pgd_steps": -1},
    ],
)
def test_impossible_settings(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(odd)).split("_")[-1]):
        AnalysisSettings(**odd)


def test_a_terminal_gets_a_bar(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(request: Any) -> dict[str, Any]:
        for done in range(1, 4):
            request.progress(done, 3)
            time.sleep(0.15)  # longer than it takes to be drawn
        return {"note": "something [odd] was left out"}

    monkeypatch.setitem(ANALYSES, "gap", replace(ANALYSES["gap"], run=slow))
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    analyse_run(run, only=["gap"], console=console)
    assert "tiny gap" in shown.getvalue() and "2/3" in shown.getvalue()
    assert "note: something [odd] was left out" in shown.getvalue()
    quiet = io.StringIO()
    analyse_run(run, only=["gap"], again=True, console=Console(file=quiet, width=100))
    assert "2/3" not in quiet.getvalue() and quiet.getvalue().startswith("tiny gap: ")


# -- the command -------------------------------------------------------------------------------


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "16", "--plane-points", "0", "--pgd-steps", "2"]
    names = ["--only", "gap, landscape,robustness,staleness,corruptions,gradients"]
    assert main(["analyse", str(run), *names, *options]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{run}, step 6\n")
    for words in (
        "gap         accuracy",
        "3 lines",
        "adversarial PGD-2  0: ",
        "tau 4 (steps 2 to",
        "shared ",
    ):
        assert words in out
    assert "tiny gap: " in err and "contrast" in out
    assert main(["analyse", str(run), *names, *options]) == 0
    assert capsys.readouterr().err.count("done already") == 6


def test_the_command_goes_on_after_a_run_that_fails(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", str(tmp_path), str(run), "--only", "gap"]) == 2
    out, err = capsys.readouterr()
    assert "gap         accuracy" in out
    assert "not a run folder" in err and f"1 of 2 runs failed: {tmp_path}" in err
    assert main(["analyse", str(tmp_path), "--only", "gap"]) == 2
    assert capsys.readouterr().err.startswith("error: ")

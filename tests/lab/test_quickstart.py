"""The quickstart: what it makes, how it goes on after an interruption, and on slow machines."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from conadv.errors import Interrupted, NonFiniteError, RunFolderError
from conadv.lab import quickstart
from conadv.lab.quickstart import PAGE, PLAN, RUNS, command_prefix, fitting_epochs, run
from conadv.trainer.recipe import Recipe, load_recipe

TINY = [
    "data.dataset=synthetic",
    "data.synthetic.size=8",
    "data.synthetic.train_images=640",
    "data.synthetic.test_images=40",
    "data.crop_padding=0",
    "train.epochs=1",
    "lr_schedule.warmup_epochs=0.5",
    "evaluation.robust_images=8",
    "evaluation.robust_steps=1",
    "evaluation.every_epochs=1",
    "hardware.threads=1",
    "hardware.precision=fp32",
]


def listening() -> tuple[Console, io.StringIO]:
    heard = io.StringIO()
    return Console(file=heard, width=120), heard


def instant(recipe: Recipe) -> float:
    return 0.0


@pytest.mark.slow
def test_from_nothing_to_the_page_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, heard = listening()
    page = run(tmp_path / "out", console=console, overrides=TINY)
    text = heard.getvalue()
    assert page == tmp_path / "out" / PAGE
    results = [json.loads((tmp_path / "out" / r / "result.json").read_text()) for r in RUNS]
    assert [result["schedule"] for result in results] == [
        "vanilla",
        "vanilla",
        "sequential",
        "recycled",
    ]
    assert results[0]["global_batch"] < results[1]["global_batch"] == results[3]["global_batch"]
    assert {result["images_seen"] for result in results[1:]} == {results[1]["images_seen"]}
    compute = [result["compute"] / results[1]["compute"] for result in results[1:]]
    assert compute[1] == pytest.approx(8 / 3) and 1.0 < compute[2] <= 2.0
    # The table and the words come from the results.
    for result in results:
        assert f"{100 * result['test_accuracy']:.1f}" in text
    assert page.resolve().as_uri() in text and "Next:" in text
    html = page.read_text(encoding="utf-8")
    assert html.count('class="triple"') == 16 and "Cut to" not in html

    def never(*_: object, **__: object) -> float:
        raise AssertionError("the second time there is nothing left to measure or train")

    before = {r: (tmp_path / "out" / r / "metrics.jsonl").read_bytes() for r in RUNS}
    monkeypatch.setattr("conadv.trainer.trainer.Trainer.train_step", never)
    page.unlink()
    assert run(tmp_path / "out", console=listening()[0], seconds_per_image=never).exists()
    assert before == {r: (tmp_path / "out" / r / "metrics.jsonl").read_bytes() for r in RUNS}


class Trained:
    """Stands in for training: notes what was asked for and leaves an empty result."""

    def __init__(self, fail: dict[str, Exception] | None = None) -> None:
        self.recipes: dict[str, Recipe] = {}
        self.fail = fail or {}

    def __call__(self, recipe: Recipe, out: Path, **_: object) -> None:
        self.recipes[out.name] = recipe
        if out.name in self.fail:
            raise self.fail[out.name]
        out.mkdir(parents=True, exist_ok=True)
        values = {"status": "finished", "method": out.name, "schedule": recipe.method.schedule}
        values |= {"global_batch": recipe.batch.global_batch, "test_accuracy": 0.5}
        (out / "result.json").write_text(json.dumps(values))


def pretend(monkeypatch: pytest.MonkeyPatch, fail: dict[str, Exception] | None = None) -> Trained:
    trained = Trained(fail)
    monkeypatch.setattr(quickstart, "train", trained)
    return trained


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vanilla": Interrupted("stopped")})
    out = tmp_path / "my runs"
    with pytest.raises(Interrupted, match=f"quickstart --out '{out}'"):
        run(out, console=listening()[0], seconds_per_image=instant)
    again = pretend(monkeypatch)
    run(out, console=listening()[0], seconds_per_image=instant)
    assert list(again.recipes) == list(RUNS)


def test_a_run_that_diverges_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pretend(monkeypatch, {"vanilla": NonFiniteError("loss is nan")})
    (tmp_path / "vanilla").mkdir()
    (tmp_path / "vanilla" / "result.json").write_text('{"status": "diverged"}')
    console, heard = listening()
    page = run(tmp_path, console=console, seconds_per_image=instant)
    assert list(trained.recipes) == list(RUNS)
    assert "loss is nan" in heard.getvalue()
    assert "vanilla is diverged and left out" in page.read_text(encoding="utf-8")


def test_the_recipes_are_followed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pretend(monkeypatch)
    run(tmp_path, console=listening()[0], seconds_per_image=instant)
    assert trained.recipes == {folder: load_recipe(name) for folder, name in RUNS.items()}


def test_a_slow_machine_gets_fewer_epochs_alike_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pretend(monkeypatch)
    console, heard = listening()
    page = run(tmp_path, console=console, seconds_per_image=lambda _: 1.0)
    own = {folder: load_recipe(name) for folder, name in RUNS.items()}
    for folder, recipe in trained.recipes.items():
        assert recipe.train.epochs == quickstart.SHORTEST
        share = quickstart.SHORTEST / float(own[folder].train.epochs or 0)
        assert recipe.lr_schedule.warmup_epochs == pytest.approx(
            own[folder].lr_schedule.warmup_epochs * share
        )
    assert "Too slow" in heard.getvalue()
    assert "Cut to 3 epochs" in page.read_text(encoding="utf-8")
    first = dict(trained.recipes)
    run(tmp_path, console=listening()[0], seconds_per_image=instant)
    assert trained.recipes == first


@pytest.mark.parametrize(
    ("seconds", "expected"),
    # Four recipes, 1 + 1 + 8/3 + 2 = 20/3 passes per image: 1.3 * 1000 * 20/3 = 8667 per epoch.
    [(8 * 8667, None), (7 * 8667, 7), (5.5 * 8667, 5), (1.0, 3)],
)
def test_fitting_epochs_in_closed_form(seconds: float, expected: int | None) -> None:
    recipes: Sequence[Recipe] = [
        load_recipe(name, ["train.epochs=8", "lr_schedule.warmup_epochs=1"])
        for name in RUNS.values()
    ]
    assert fitting_epochs(iter(recipes), 1000, 1.0, seconds + 1) == expected


def test_runs_of_a_given_number_of_steps_are_left_alone() -> None:
    recipe = load_recipe(RUNS["vanilla"], ["train.epochs=null", "train.steps=5"])
    assert fitting_epochs(iter([recipe]), 1000, 1.0, 1.0) is None


@pytest.mark.parametrize("text", ["", "[]", '{"epochs": 3}', "{"])
def test_a_damaged_plan_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(RunFolderError, match="is damaged"):
        run(tmp_path, console=listening()[0])


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write into"):
        run(tmp_path / "file" / "out", console=listening()[0], seconds_per_image=instant)


def test_commands_are_typed_as_this_environment_needs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quickstart.shutil, "which", lambda _: None)
    assert command_prefix().endswith(" -m conadv")
    beside = Path(sys.executable).with_name("conadv")
    monkeypatch.setattr(quickstart.shutil, "which", lambda _: str(beside))
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self)
    assert command_prefix() == "conadv"
    monkeypatch.setattr(quickstart.shutil, "which", lambda _: str(tmp_path / "conadv"))
    assert command_prefix().endswith(" -m conadv")

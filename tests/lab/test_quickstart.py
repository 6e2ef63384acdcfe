"""The quickstart: what it makes, how it goes on after an interruption, and what it shows where."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from conadv.errors import Interrupted, NonFiniteError, RecipeError, RunFolderError
from conadv.lab import quickstart
from conadv.lab.quickstart import PAGE, RUNS, SEEDS, command_prefix, recipes, run
from conadv.trainer.recipe import Recipe

TINY = [
    "data.dataset=synthetic",
    "data.test_unused=false",
    "data.train_images=null",
    "data.synthetic.size=8",
    "data.synthetic.train_images=1500",
    "data.synthetic.test_images=40",
    "train.epochs=1",
    "lr_schedule.warmup_epochs=0.5",
    "evaluation.robust_images=8",
    "evaluation.robust_steps=1",
    "evaluation.every_epochs=1",
    "hardware.threads=1",
    "hardware.precision=fp32",
]
FOLDERS = [f"{name}-{seed}" for seed in SEEDS for name in RUNS]


def listening(width: int = 120, **more: Any) -> tuple[Console, io.StringIO]:
    heard = io.StringIO()
    return Console(file=heard, width=width, **more), heard


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
    results = [json.loads((tmp_path / "out" / r / "result.json").read_text()) for r in FOLDERS[:4]]
    assert [result["schedule"] for result in results] == [
        "vanilla",
        "vanilla",
        "recycled",
        "recycled",
    ]
    assert results[0]["global_batch"] < results[1]["global_batch"] == results[3]["global_batch"]
    compute = [result["compute"] / results[1]["compute"] for result in results[1:]]
    assert compute[0] == 1 and 1.0 < compute[2] <= 2.0
    assert page.resolve().as_uri() in text and "Next:" in text
    html = page.read_text(encoding="utf-8")
    assert html.count('class="triple"') == 16
    # What the terminal says stands on the page.
    headline = re.search(r"<h1>(.*?)</h1>", html)
    assert headline and " ".join(headline[1].split()) in " ".join(text.split())

    def never(*_: object, **__: object) -> float:
        raise AssertionError("the second time there is nothing left to measure or train")

    before = {r: (tmp_path / "out" / r / "metrics.jsonl").read_bytes() for r in FOLDERS}
    monkeypatch.setattr("conadv.trainer.trainer.Trainer.train_step", never)
    page.unlink()
    again = run(tmp_path / "out", console=listening()[0], overrides=TINY, seconds_per_image=never)
    assert again.exists()
    assert before == {r: (tmp_path / "out" / r / "metrics.jsonl").read_bytes() for r in FOLDERS}


class Trained:
    """Stands in for training: notes what was asked for and leaves a made-up result."""

    def __init__(self, fail: dict[str, Exception] | None = None) -> None:
        self.recipes: dict[str, Recipe] = {}
        self.fail = fail or {}

    def __call__(self, recipe: Recipe, out: Path, **_: object) -> None:
        self.recipes[out.name] = recipe
        if out.name in self.fail:
            raise self.fail[out.name]
        out.mkdir(parents=True, exist_ok=True)
        name, _sep, seed = out.name.rpartition("-")
        cost = 2.0 if name == "recycled" else 1.0
        values = {"status": "finished", "schedule": recipe.method.schedule, "seed": int(seed)}
        values |= {"method": recipe.method.label or recipe.method.schedule}
        values |= {"dataset": "images", "model": "net", "steps": 10, "val_accuracy": 0.8}
        values |= {"global_batch": recipe.batch.global_batch, "compute": 1000 * cost}
        values |= {"test_accuracy": 0.8 + 0.001 * int(seed), "train_accuracy": 1.0}
        values |= {"robust_accuracy": 0.1 * cost, "step_seconds_median": 0.1 * cost}
        (out / "result.json").write_text(json.dumps(values))


def pretend(monkeypatch: pytest.MonkeyPatch, fail: dict[str, Exception] | None = None) -> Trained:
    trained = Trained(fail)
    monkeypatch.setattr(quickstart, "train", trained)
    return trained


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"vanilla-0": Interrupted("stopped")})
    out = tmp_path / "my runs"
    with pytest.raises(Interrupted, match=f"quickstart --out '{out}'"):
        run(out, console=listening()[0], seconds_per_image=instant)
    again = pretend(monkeypatch)
    run(out, console=listening()[0], seconds_per_image=instant)
    assert list(again.recipes) == FOLDERS


def test_a_run_that_diverges_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pretend(monkeypatch, {"vanilla-1": NonFiniteError("loss is nan")})
    (tmp_path / "vanilla-1").mkdir()
    (tmp_path / "vanilla-1" / "result.json").write_text('{"status": "diverged"}')
    console, heard = listening()
    page = run(tmp_path, console=console, seconds_per_image=instant)
    assert list(trained.recipes) == FOLDERS
    assert "loss is nan" in heard.getvalue()
    assert "vanilla-1 is diverged and left out" in page.read_text(encoding="utf-8")


def test_every_method_is_run_on_every_seed_as_its_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = pretend(monkeypatch)
    run(tmp_path, console=listening()[0], seconds_per_image=instant)
    assert trained.recipes == recipes()
    for folder, recipe in trained.recipes.items():
        name, _, seed = folder.rpartition("-")
        assert (recipe.name, recipe.seed) == (RUNS[name], int(seed))
    images = [recipe.data for recipe in trained.recipes.values()]
    assert images == images[:1] * len(images), "one set of images"
    steps = {recipe.total_steps(2000) for name, recipe in recipes().items() if "small" not in name}
    assert len(steps) == 1, "as many updates"


def test_what_takes_longer_is_said_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    console, heard = listening()
    run(tmp_path, console=console, seconds_per_image=lambda _: 0.001)
    assert re.search(r"takes about 2\d min. Ctrl-C stops", heard.getvalue())
    console, heard = listening()
    run(tmp_path, console=console, seconds_per_image=lambda _: 0.001)
    assert "takes about" not in heard.getvalue(), "all of it is there"


def test_a_folder_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"small-batch-0": RecipeError("epochs differ.")})
    with pytest.raises(RunFolderError, match="other settings than this version's quickstart"):
        run(tmp_path, console=listening()[0], seconds_per_image=instant)


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        run(tmp_path / "file" / "out", console=listening()[0], seconds_per_image=instant)


def test_it_says_what_was_gained_at_what_cost_and_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    console, heard = listening(400)
    run(tmp_path, console=console, seconds_per_image=instant)
    text = heard.getvalue()
    # Both did as well on held-out images: the cheaper one speaks.
    assert (
        "At batch 500 recycled, fixed budget changed accuracy under attack by 0.0 points (0.0 to "
        "0.0, within chance) and test accuracy by 0.0 points (0.0 to 0.0, within chance), for "
        "1.00× the compute; batch 500 itself changed ordinary training by 0.0 points"
    ) in text
    assert (
        "- recycled: 0.0 (0.0 to 0.0) points of test accuracy and +10.0 (+10.0 to +10.0) points of "
        "accuracy under attack, for 2.00× the compute and 2.00× (2.00× to 2.00×) the time per step."
    ) in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    "kind",
    [
        {"force_terminal": True, "color_system": "truecolor"},
        {"force_terminal": True, "no_color": True},
        {},
    ],
    ids=["colour", "no colour", "pipe"],
)
def test_what_is_shown_fits_any_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, kind: dict[str, Any]
) -> None:
    pretend(monkeypatch)
    console, heard = listening(width, **kind)
    run(tmp_path, console=console, seconds_per_image=instant)
    text = heard.getvalue()
    assert ("\x1b[" in text) == bool(kind), "escape codes on a terminal alone"
    assert kind.get("no_color") is None or not re.search(r"\x1b\[[\d;]*3[0-7]m", text)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    table, copied = plain.split("\nThe page with curves")
    assert "…" not in plain, "nothing is cut"
    assert max(map(cell_len, table.splitlines())) <= width
    for result in ("recycled, fixed budget", "80.1 %", "2.00×"):
        assert result in " ".join(table.replace("\N{NARROW NO-BREAK SPACE}", " ").split())
    # What is to be copied is whole for a shell: a break stands behind a backslash.
    assert any(line.endswith(PAGE) for line in copied.splitlines())
    typed = re.sub(r" \\\n +", " ", copied)
    assert any(line.endswith(f"evaluate {tmp_path}/recycled-0") for line in typed.splitlines())


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

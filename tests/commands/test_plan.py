"""``conadv plan``: what it prints, writes, draws and refuses."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conadv.cli import main
from conadv.commands import _plan_inputs as inputs
from conadv.lab.planning import Loader
from conadv.lab.report.charts.plan_chart import headline, plan_page
from conadv.lab.report.charts.plan_svg import step_parts
from conadv.trainer.recipe import load_recipe
from support.browser import CHROMIUM, look

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "benchmarks" / "results" / "steps-cpu.json"


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stand-in for a recipe of ImageNet: files, 64 pixels."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        "name: tiny\n"
        "data: {dataset: files, validation: 0, files: {size: 64, eval_size: 64, eval_resize: 64}}\n"
        "model: {name: cifar/resnet8}\n"
        "batch: {global_batch: 98304, micro_batch: 96, norm_group: 96}\n"
        "method: {schedule: lookahead}\n"
        "train: {epochs: 99.8}\n"
    )
    return path


def planned(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    assert main(["plan", *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_prints_schedules_devices_and_assumptions(
    imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", str(imagenet), "--devices", "1024"]
    assert main([*arguments, "--device-type", "tpu-v3-core", "--link", "tpu-v3-ici"]) == 0
    shown = capsys.readouterr().out
    for name in ("vanilla", "sequential", "lookahead", "recycled", "recycled-budget"):
        assert f" {name} " in shown
    assert "1,024 x tpu-v3-core, tpu-v3-ici" in shown
    assert "Predicted, not measured" in shown
    assert "extra cost hidden here: " in shown
    assert "lookahead, by number of devices" in shown
    assert "normalisation groups kept whole: 2,048, 4,096 devices" in shown
    assert "(an assumption)" in shown
    assert "Cloud TPU" in shown  # whose figure the peak is
    assert "published" not in shown  # those are of another network


def test_what_it_writes(imagenet: Path, tmp_path: Path) -> None:
    found = planned(tmp_path, str(imagenet), "batch.norm_group=32", "--devices", "48")
    assert found["refused"] == [2048, 4096]
    rows = {(row["schedule"], row["devices"]): row for row in found["rows"]}
    assert {n for _, n in rows} == {1, 2, 4, 8, 16, 32, 48, 64, 128, 256, 512, 1024}
    one = rows["vanilla", 1]
    assert one["micro_batch"] * one["rounds"] == 98304
    assert one["steps"] == round(99.8 * 1_281_167 / 98304)
    assert one["train_seconds"] == pytest.approx(one["steps"] * one["step_seconds"])
    assert one["over_vanilla"] == one["efficiency"] == 1.0
    assert one["parts"]["network"] == 0
    for row in found["rows"]:
        assert sum(step_parts(row).values()) == pytest.approx(row["step_seconds"])
        assert row["memory"]["total"] == pytest.approx(
            sum(size for name, size in row["memory"].items() if name != "total")
        )
    budget = rows["recycled-budget", 1]
    assert budget["steps"] == round(99.8 * 1_281_167 / (0.75 * 98304))


def test_a_measured_throughput_replaces_the_count(tmp_path: Path) -> None:
    recipe = "cifar10-resnet18-4k-vanilla"
    arguments = (recipe, "--device-type", "cpu", "--devices", "1", "--link", "1Gbit")
    found = planned(tmp_path, *arguments, "--images-per-second", "100")
    vanilla = next(row for row in found["rows"] if row["schedule"] == "vanilla")
    assert vanilla["images_per_second"] == pytest.approx(100)
    measured = json.loads(STEPS.read_text())
    row = measured["rows"][0]
    speed = measured["settings"]["batch"] / row["step_seconds_median"]
    found = planned(tmp_path, *arguments, "--measured", str(STEPS))
    vanilla = next(row for row in found["rows"] if row["schedule"] == "vanilla")
    assert vanilla["images_per_second"] == pytest.approx(speed)
    assert any(note.startswith("measured: ") for note in found["assumptions"])


def test_the_measured_costs_of_schedules_are_predicted(tmp_path: Path) -> None:
    """Vanilla's measured time alone says what a step of the others took, within 15 %."""
    measured = json.loads(STEPS.read_text())
    found = planned(
        tmp_path,
        "cifar10-resnet18-4k-vanilla",
        *("--device-type", "cpu", "--devices", "1", "--measured", str(STEPS)),
    )
    ratio = {r["schedule"]: r["over_vanilla"] for r in found["rows"] if r["devices"] == 1}
    for row in measured["rows"]:
        if row["schedule"] in ratio:
            assert ratio[row["schedule"]] == pytest.approx(row["step_ratio"]["median"], rel=0.15)


def test_options_reach_the_model(imagenet: Path, tmp_path: Path) -> None:
    def step(*more: str) -> dict[str, float]:
        found = planned(tmp_path, str(imagenet), "--devices", "64", *more)
        rows = [row for row in found["rows"] if row["devices"] == 64]
        return next(row for row in rows if row["schedule"] == "sequential")["parts"]

    base = step()
    assert step("--utilisation", "0.075")["train"] == pytest.approx(2 * base["train"], rel=1e-6)
    assert step("--half-batch", "960")["idle"] > base["idle"]
    assert step("--link", "1Gbit")["exposed"] > base["exposed"]
    assert step("--latency", "10000")["network"] > base["network"] + 0.1
    assert step("--cores-per-device", "6")["loader"] == pytest.approx(2 * base["loader"])
    assert step("--core-images-per-second", "28")["loader"] == pytest.approx(10 * base["loader"])
    slow = step("--storage", "1GB/s", "--image-bytes", "1e5")["loader"]
    assert slow == pytest.approx(98304 * 1e5 / 1e9)
    more = planned(tmp_path, str(imagenet), "--devices", "64", "--activations", "500")
    assert all(row["memory"]["activations"] >= 96 * 500e6 * 0.99 for row in more["rows"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smoke", "--device-type", "h10"], "Did you mean h100?"),
        (["smoke", "--link", "nvlink4-nrd"], "Did you mean nvlink4-ndr?"),
        (["smoke", "--link", "fast"], "25Gbit"),
        (["smoke", "--devices", "7"], "Nearest numbers of devices that can: 1, 2"),
        (["smoke", "--devices", "0"], "--devices"),
        (["smok"], "Did you mean smoke?"),
        (["smoke", "--device-type", "cpu"], "--images-per-second"),
        (["smoke", "--images-per-second", "-1"], "--images-per-second -1: give a number above 0"),
        (["smoke", "--storage", "quick"], "--storage quick: give a rate such as"),
        (["smoke", "--measured", str(STEPS)], "conadv bench steps --model cifar/resnet8"),
        (["smoke", "--measured", __file__], "not a file of conadv bench steps"),
        (["smoke", "--measured", "nowhere.json"], "nowhere.json"),
        (["smoke", "hardware.parallel=fsdp"], "hardware.parallel=ddp"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err


# -- from recipes ------------------------------------------------------------------------------


def test_methods_follow_the_recipe() -> None:
    def own(*changes: str) -> Any:
        recipe = load_recipe("smoke", changes)
        name = inputs.own_schedule(recipe)
        return next(m for m in inputs.methods_of(recipe) if m.schedule == name)

    assert own("method.share=0.5").share == 0.5
    assert own("method.share=[[0, 0.1], [1, 0.7]]").share == 0.7
    assert own("method.budget=fixed").schedule == "recycled-budget"
    assert own("method.budget=fixed").share == 0.25
    assert own("method.refine=3").settings["refine"] == 3
    assert own("method.schedule=noise").schedule == "noise"
    assert own("method.schedule=sequential", "attack.steps=3").attacks == 3
    ahead = ("method.schedule=lookahead", "method.tau=2")
    assert own(*ahead).settings["tau"] == 2 and own(*ahead).packed
    assert own(*ahead, "attack.random_start=0.8").packed
    assert not own(*ahead, "attack.norm=l2").packed
    assert own("method.view=plain").views == 1


@pytest.mark.parametrize(
    ("change", "states", "passes"),
    [
        ("name=lars", 1, 7),  # norms: w, g; then w, g, v, and w and v written
        ("name=lamb", 2, 10),  # w, g, m, v, and m and v written; then w, m, v, and w written
        ("name=sgd", 1, 5),
        ("momentum=0", 0, 5),
        ("name=adamw", 2, 7),
    ],
)
def test_jobs_follow_the_recipe(change: str, states: int, passes: int) -> None:
    recipe = load_recipe("smoke", [f"optimizer.{change}", "train.ema_decay=0.9"])
    job = inputs.job_of(recipe, Loader(1.0))
    assert (job.optimizer_states, job.update_passes) == (states, passes)
    assert (job.global_batch, job.micro_batch, job.norm_group) == (64, 32, 32)
    assert job.averaged
    assert job.train_images == 448
    assert job.loader == Loader()  # images in memory


@pytest.mark.parametrize(
    "name", ["smoke", "fashion-resnet8-vanilla", "cifar10-resnet18-4k-vanilla"]
)
def test_images_follow_the_recipe(name: str) -> None:
    expected = {"smoke": (3, 16, 16), "fashion-resnet8-vanilla": (1, 28, 28)}
    shape, classes, total = inputs.images_of(load_recipe(name))
    assert shape == expected.get(name, (3, 32, 32))
    assert classes == (4 if name == "smoke" else 10)
    assert total > 100


# -- the chart ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and text of a page; every opened tag that has to be closed is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [tag] if tag in ("svg", "g", "text", "section", "ul", "div") else []
        assert not any(key in ("src", "href") for key, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("svg", "g", "text", "section", "ul", "div"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_chart_is_whole_and_loads_nothing(imagenet: Path, tmp_path: Path) -> None:
    chart = tmp_path / "new" / "plan.html"
    arguments = ["--devices", "64", "--chart", str(chart)]
    record = planned(tmp_path, str(imagenet), *arguments)
    page = Page(chart.read_text())
    assert page.open == []
    assert "On 64 × h100, nvlink4-ndr, recycled-budget is the cheapest schedule with copies" in (
        " ".join(page.words)
    )
    assert page.tags.count("polyline") == 2 * 5  # time and efficiency of five schedules
    assert page.tags.count("rect") == 5 * 5  # the five parts of a step of each
    words = " ".join(page.words)
    for note in record["assumptions"]:
        assert note in words
    assert "published by" not in words
    shown = {
        **record,
        "recipe": "<b>&",
        "published": [
            {"what": "a", "batch": 8192, "devices": 256, "device": "P100", "minutes": 60,
             "source": "arXiv 1"},
            {"what": "no time", "batch": 98304, "devices": 1024, "device": "TPU core",
             "minutes": None, "source": "arXiv 2"},
        ],
    }  # fmt: skip
    other = Page(plan_page(shown))
    assert "b" not in other.tags
    said = " ".join(other.words)
    assert "published by others" in said
    assert "a: published, a, batch 8,192, 256 x P100, 60 min (arXiv 1)" in said
    # A letter in the list is a point in the drawing: one run with a time, and the legend's ring.
    assert "published, not drawn: no time, batch 98,304, 1,024 x TPU core, no time known" in said
    assert other.tags.count("circle") == 2 and "b: published" not in said


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"attack": 3.0}, "beside b (2.50×) it makes its copies without passes of their own"),
        ({"exposed": 3.0}, "beside b (2.50×) less of what it sends has to be waited for"),
    ],
)
def test_the_headline_says_which_schedule_wins_and_why(parts: dict[str, float], why: str) -> None:
    nothing = dict.fromkeys(("train", "attack", "host", "update", "exposed", "loader"), 0.0)
    rows = [
        {"schedule": name, "step_seconds": seconds, "parts": nothing | {"train": 2.0} | more}
        for name, seconds, more in (
            ("vanilla", 2.0, {}),
            ("a", 2.2, {"train": 2.2}),
            ("b", 5.0, parts),
        )
    ]
    on = "8 × x, y"
    assert headline(rows, on) == (
        "On 8 × x, y, a is the cheapest schedule with copies: its step takes 1.10× the time of "
        f"ordinary training's, because {why}."
    )
    assert headline(rows[:1], on) == "The cost of a step on 8 × x, y"
    assert headline([*rows[:2], rows[1] | {"schedule": "c"}], on).endswith("as c takes too.")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in")
def test_the_chart_is_legible(imagenet: Path, tmp_path: Path, width: int) -> None:
    chart = tmp_path / "plan.html"
    assert main(["plan", str(imagenet), "--devices", "64", "--chart", str(chart)]) == 0
    for dark in (False, True):
        seen = look(chart, tmp_path, width=width, dark=dark)
        assert seen.found == [] and seen.width <= width and seen.drawings == 3


def test_a_chart_that_cannot_be_written(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(imagenet), "--chart", str(tmp_path)]) == 2
    assert "cannot write the chart" in capsys.readouterr().err

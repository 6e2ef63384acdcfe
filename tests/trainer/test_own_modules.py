"""Methods of one's own: each is one module, and a recipe that names it trains."""

from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conadv.errors import DataError, RecipeError
from conadv.lab.planning import Method
from conadv.lab.report.page import write_report
from conadv.lab.study.cost import compute_factor
from conadv.trainer.build import build
from conadv.trainer.data.decoding import Pipeline
from conadv.trainer.update import make_optimizer
from support.runs import quietly, tiny

SCHEDULE = '''
"""Copies of the batch two steps later, pushed along random signs."""

from collections import deque

from conadv.schedules import Copies, Schedule, Setting, Work


class Ahead(Schedule):
    name = "ahead"
    settings = {
        "steps": Setting(2, "Steps read ahead.", low=1, high=8, in_steps=True),
        "strength": Setting(0.5, "Of the noise.", low=0.0, high=1.0),
    }
    queues_rounds = True

    def __init__(self, share=1.0, weight=None, steps=2, strength=0.5):
        super().__init__(share, weight)
        self.reads_ahead, self.strength = steps, strength
        self.pending = deque([None] * steps)
        self.seen = []

    @property
    def label(self):
        return f"ahead, {self.reads_ahead} steps"

    def work(self, share, attack_steps=1):
        return Work(copies=share)

    def resolve(self, attack, clean_branch, adversarial_branch):
        if attack.target is not None:
            raise ValueError(f"target={attack.target!r}: noise has no aim.")
        return super().resolve(attack, clean_branch, adversarial_branch)

    def copies(self, current):
        made = self.pending[0]
        return [] if made is None else [Copies(*made)]

    def collect(self, current):
        self.pending.popleft()
        self.pending.append(None)
        if current.future is not None:
            images, labels = current.future
            noise = self.strength * (current.noise(images) - images)
            self.pending[-1] = (images + noise, labels.clone())
            self.seen.append(images)
'''


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """A module of that name in a folder that Python looks in."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_a_schedule_that_reads_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "own_schedule", SCHEDULE)
    named = ("method.schedule=own_schedule:Ahead", "method.options={strength: 0.25}")
    recipe = tiny(*named)
    assert recipe.reads_ahead == 2
    assert recipe.method_label == "ahead, 2 steps"
    assert compute_factor(recipe) == 2
    assert Method("own_schedule:Ahead", settings={"steps": 3}).ahead
    trainer = build(recipe).trainer
    schedule: Any = trainer.adversary.schedule
    assert schedule.reads_ahead == 2 * recipe.micro_steps
    assert schedule.strength == 0.25
    counts = []
    for _ in range(4):
        trainer.train_step()
        counts.append(trainer.adversary.diagnostics.images)
    # Without copies until those of the step two later come round; then one per image.
    assert counts == [8, 8, 16, 16]
    torch.testing.assert_close(schedule.seen[0], trainer.feed.micro_batch(2, 0)[0])
    result = quietly(recipe, tmp_path / "run")
    assert (result.method, result.status) == ("ahead, 2 steps", "finished")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("method.options={strength: 2}",), "strength=2: give a number from 0 up to 1"),
        (("method.options={strength: yes please}",), "give a value of type float, such as 0.5"),
        (("method.options={stength: 1}",), "unexpected keyword argument 'stength'"),
        (("method.options={tau: 1}",), "which is a field: set method.tau"),
        (("method.tau=3",), "only lookahead has this setting"),
        (("attack.target=random",), "attack.target='random': noise has no aim."),
        (("method.schedule=own_schedule:Behind",), "has no attribute 'Behind'"),
        (("method.schedule=own_schedule:deque",), "no class that derives from"),
        (("method.schedule=no_such_module:A",), "has to lie in a folder of $PYTHONPATH"),
    ],
)
def test_a_schedule_refuses_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], said: str
) -> None:
    module(tmp_path, monkeypatch, "own_schedule", SCHEDULE)
    with pytest.raises(RecipeError) as caught:
        tiny("method.schedule=own_schedule:Ahead", *given)
    assert said in str(caught.value)


def test_rounds_that_are_no_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SCHEDULE.replace(", in_steps=True", "")
    module(tmp_path, monkeypatch, "rounds_schedule", text)
    with pytest.raises(RecipeError, match="reads 2 rounds ahead, and a step has 2"):
        tiny("method.schedule=rounds_schedule:Ahead")
    tiny("method.schedule=rounds_schedule:Ahead", "batch.micro_batch=16")


OPTIMIZER = """
import torch


class SignDescent(torch.optim.Optimizer):
    def __init__(self, params, lr, power=1.0):
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad.sign() * p.grad.abs() ** (1 - group["power"])
"""


def test_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "own_optimizer", OPTIMIZER)
    named = "optimizer.name=own_optimizer:SignDescent"
    constant = ("lr_schedule.decay=constant", "lr_schedule.warmup_epochs=0")
    recipe = tiny("method.schedule=vanilla", named, "optimizer.lr=0.5", *constant)
    assert recipe.method_label == "SignDescent"
    trainer = build(recipe).trainer
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train_step()
    pairs = zip(trainer.model.parameters(), before, strict=True)
    moved = {round((p - q).abs().max().item(), 4) for p, q in pairs}
    assert moved == {0.0, 0.5}  # 0: of the layers below a last gamma of zero
    with pytest.raises(RecipeError, match="unexpected keyword argument 'powr'"):
        make_optimizer(tiny(named, "optimizer.options={powr: 2}"), trainer.model)
    with pytest.raises(RecipeError, match="has no attribute 'Ascent'"):
        tiny("optimizer.name=own_optimizer:Ascent")


AUGMENTATION = """
import torch


def invert(image, random):
    return 255 - image if random.random() < 0.5 else image


def floats(image, random):
    return image / 255
"""


def test_an_augmentation_of_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, "own_augmentation", AUGMENTATION)
    plain = ("data.crop_padding=0", "data.flip=false")
    usual = build(tiny(*plain))
    own = build(tiny(*plain, "data.augment=own_augmentation:invert"))
    facts = usual.splits.facts
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
    changed = 0
    for slot in range(2):
        one, other = (b.trainer.feed.micro_batch(0, slot)[0] for b in (usual, own))
        for image, made in zip(one, other, strict=True):
            inverted = (1 - (image * std + mean) - mean) / std
            if not torch.equal(image, made):
                torch.testing.assert_close(made, inverted)
                changed += 1
    assert 2 <= changed <= 14
    again = own.trainer.feed.micro_batch(0, 1)[0]
    assert torch.equal(again, build(own.recipe).trainer.feed.micro_batch(0, 1)[0])
    own.trainer.train_step()
    wrong = build(tiny("data.augment=own_augmentation:floats"))
    with pytest.raises(DataError, match=r"made torch.float32 of shape \(8, 8, 3\)"):
        wrong.trainer.train_step()
    with pytest.raises(RecipeError, match="has no attribute 'none'"):
        tiny("data.augment=own_augmentation:none")


def test_an_augmentation_of_images_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, "own_augmentation", AUGMENTATION)
    file = BytesIO()
    Image.new("RGB", (40, 40), (200, 100, 0)).save(file, "PNG")
    pipeline = Pipeline(16, own="own_augmentation:invert")
    colours = [pipeline(file.getvalue(), 0, 0, place)[0, 0].tolist() for place in range(16)]
    assert [200, 100, 0] in colours and [55, 155, 255] in colours
    assert colours == [pipeline(file.getvalue(), 0, 0, p)[0, 0].tolist() for p in range(16)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_augmentation_of_folders_of_images_trains(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recipe to the trained weights, its module also found by processes that decode."""
    module(tmp_path, monkeypatch, "own_augmentation", AUGMENTATION)
    colours = {"red": (200, 0, 0), "blue": (0, 0, 200)}
    for (split, side), name, number in product({"train": 20, "val": 24}.items(), colours, range(6)):
        file = tmp_path / "photographs" / split / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), colours[name]).save(file)
    files = (
        "data.dataset=files",
        f"data.root={tmp_path / 'photographs'}",
        "data.crop_padding=0",
        "data.validation=0",
        *(f"data.files.{size}=16" for size in ("size", "eval_size", "eval_resize")),
        f"data.files.workers={workers}",
    )
    batch = ("batch.global_batch=8", "batch.micro_batch=8", "train.steps=2")
    recipe = tiny(*files, *batch, "data.augment=own_augmentation:invert")
    built = build(recipe)
    facts = built.splits.facts
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
    images, _ = built.trainer.feed.micro_batch(0, 0)
    seen = {tuple(((image * std + mean)[:, 0, 0] * 255).round().int().tolist()) for image in images}
    assert seen <= {*colours.values(), (55, 255, 255), (255, 255, 55)}
    assert len(seen) > 2, "some are inverted, some are not"
    built.trainer.feed.close()
    result = quietly(recipe, tmp_path / "run")
    assert result.status == "finished" and result.steps == 2
    plain = quietly(tiny(*files, *batch), tmp_path / "plain")
    assert plain.train_loss != result.train_loss, "it was trained with"


CHART = """
from conadv.lab.report.charts.panels import Chart, Panel


def losses(cells, palette):
    runs = [run for cell in cells for run in cell.runs]
    drawing = f'<svg viewBox="0 0 100 20"><rect width="{len(runs)}" height="20"/></svg>'
    return Chart("own-losses", "How many there are", "Counted.", (Panel("Runs", drawing),))


def nothing(cells, palette):
    return None
"""


def test_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "own_chart", CHART)
    quietly(tiny("method.schedule=vanilla", "train.steps=1"), tmp_path / "run")
    page = write_report(
        [tmp_path / "run"], tmp_path / "page.html", charts=["own_chart:losses", "own_chart:nothing"]
    ).read_text()
    assert "How many there are" in page and "own-losses" in page
    assert "own-losses" not in write_report([tmp_path / "run"], tmp_path / "plain.html").read_text()

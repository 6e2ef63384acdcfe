"""Dry runs: every shipped recipe takes a real step; what they print is counted another way here."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import conadv
from conadv.cli import main
from conadv.errors import DistributedError, RecipeError
from conadv.lab.planning import count
from conadv.optim import warmup_poly
from conadv.trainer.input.load import load_splits
from conadv.trainer.input.random_images import RandomSplits, images_of
from conadv.trainer.models.zoo import create_model
from conadv.trainer.probe import trial_step
from conadv.trainer.probe.dry_run import DryRun, dry_run
from conadv.trainer.probe.memory import SavedBytes, bytes_of
from conadv.trainer.recipe import load_recipe, recipe_names

CPU = ["hardware.device=cpu", "hardware.precision=fp32"]
SMALLEST = [
    *("model.name=cifar/resnet8", "model.options={}", "data.files.size=32"),
    *("data.files.eval_size=32", "data.files.eval_resize=32"),
]
"""The smallest network and small images; everything else as in the recipe."""


def try_out(name: str, *overrides: str, devices: int = 1, images: int | None = None) -> DryRun:
    return dry_run(load_recipe(name, [*CPU, *overrides]), devices, images)


# -- all recipes -------------------------------------------------------------------------------


def expected_factor(name: str) -> float:
    """Passes of a step over those of ordinary training: METHOD's table of costs, in thirds."""
    recipe = load_recipe(name)
    method = recipe.method
    if "fixed" in (method.budget, recipe.weights.budget):
        return 1.0
    if recipe.weights.on:
        return 2.0
    passes = {"vanilla": 3, "sequential": 8, "lookahead": 8, "recycled": 6, "noise": 6}
    return (passes[method.schedule] + 3 * (method.view != "none")) / 3


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_a_step(name: str) -> None:
    small = SMALLEST if load_recipe(name).data.dataset == "files" else SMALLEST[:2]
    recipe = load_recipe(name, [*CPU, *small])
    found = dry_run(recipe)
    _, classes, count = images_of(recipe)
    assert found.steps == recipe.total_steps(count)
    assert found.micro_steps * found.recipe.micro_batch == recipe.batch.global_batch
    # Steps of so many fresh images make up the epochs.
    assert found.epochs == pytest.approx(found.steps * recipe.fresh_per_step / count)
    assert found.compute_factor == pytest.approx(expected_factor(name))
    # Untrained on labels drawn at random: ln(classes), for the network's logits are small.
    assert found.loss == pytest.approx(math.log(classes), rel=0.3)
    assert found.step_seconds > 0
    assert found.seconds == pytest.approx(found.steps * found.step_seconds)
    copies = recipe.method.schedule != "vanilla" and recipe.method.budget == "extra"
    copies |= recipe.weights.schedule == "recycled" and recipe.weights.budget == "extra"
    parts = 1 + copies + (recipe.method.view != "none")
    assert found.trained_per_step == parts * found.recipe.batch.global_batch
    learning_rates = {point.what: point.learning_rate for point in found.schedule}
    assert max(learning_rates.values()) == pytest.approx(recipe.peak_lr)
    assert learning_rates["end of warm-up"] == pytest.approx(recipe.peak_lr)
    assert learning_rates["last step"] < 0.01 * recipe.peak_lr


# -- the real thing ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet50() -> DryRun:
    name = "imagenet-resnet50-conadv-aa-96k"
    return try_out(name, "data.files.size=64", devices=64, images=4)


def test_resnet50_of_the_paper(resnet50: DryRun) -> None:
    assert resnet50.recipe.branches == ("clean", "adversarial", "augmented")
    # 25,557,032 as documented by torchvision, and the 53,120 values of its batch norms' weights
    # and biases twice more.
    assert resnet50.parameters == 25_557_032 + 2 * 53_120
    assert (resnet50.steps, resnet50.warmup_steps) == (1301, 534)
    assert (resnet50.devices, resnet50.micro_steps) == (64, 16)
    assert resnet50.image == (3, 64, 64)
    assert resnet50.train_images == 1_281_167
    assert resnet50.trained_per_step == 3 * 98_304
    assert resnet50.compute_factor == pytest.approx(11 / 3)
    assert resnet50.loss == pytest.approx(math.log(1000), abs=0.3)


def test_memory_of_the_paper(resnet50: DryRun) -> None:
    memory, weights = resnet50.memory, 4 * (25_557_032 + 2 * 53_120)
    # Running mean and variance of 26,560 channels and a counter (int64) for each of 53 layers, in
    # three branches.
    assert memory.weights == weights + 3 * (2 * 4 * 26_560 + 53 * 8)
    assert memory.gradients == weights
    assert memory.optimizer == weights, "LARS keeps a momentum"
    # A step's copies wait on the device, a sign bit per value.
    assert memory.pending == 16 * 96 * 3 * 64 * 64 / 8
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
    assert memory.total == sum(parts) + memory.pending


def test_memory_of_old_gradients() -> None:
    overrides = ("data.files.size=64",)
    found = try_out("imagenet-resnet50-weights-recycled-96k", *overrides, devices=64, images=2)
    # The matrices of ResNet-50: everything but batch norms and the classifier's bias.
    gradient = 2 * (25_557_032 - 53_120 - 1000)
    assert gradient == pytest.approx(51e6, rel=0.01)
    # One for each of the device's 16 micro-batches, and its images, to be trained on again.
    assert found.memory.pending == 16 * (gradient + 4 * 96 * 3 * 64 * 64)
    assert found.compute_factor == 2


def test_the_schedule_is_the_recipes(resnet50: DryRun) -> None:
    points = {point.what: point for point in resnet50.schedule}
    assert points["first step"].learning_rate == pytest.approx(43 / 534)
    assert (points["end of warm-up"].step, points["end of warm-up"].learning_rate) == (534, 43)
    last = points["last step"]
    assert last.step == 1300
    assert last.learning_rate == pytest.approx(43 * (1 / (1301 - 534)) ** 1.6)
    assert last.epoch == pytest.approx(1300 * 98_304 / 1_281_167)
    assert [p.step for p in resnet50.schedule] == sorted(p.step for p in resnet50.schedule)
    for point in resnet50.schedule:
        assert point.learning_rate == pytest.approx(43 * warmup_poly(point.step, 1301, 534, 1.6))


# -- memory ------------------------------------------------------------------------------------


def test_what_autograd_keeps_of_a_small_network() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    with SavedBytes(model) as saved:
        loss = model(torch.randn(4, 5)).sum()
        # The first layer's input, and what ReLU gives, which the second layer shares.
        assert saved.of_images == 4 * (4 * 5 + 4 * 7)
        assert saved.of_weights == 0, "weights are counted elsewhere"
        loss.backward()


def test_the_planner_counts_the_same_from_the_layers() -> None:
    model = create_model("cifar/resnet8", 3, 10)
    counted = count(model, (3, 32, 32), torch.float32)
    with SavedBytes(model) as saved:
        model(torch.randn(16, 3, 32, 32)).sum().backward()
    assert saved.of_images == pytest.approx(16 * counted.saved + counted.saved_once, rel=0.02)


def test_the_peak_counts_and_not_the_sum() -> None:
    model = nn.Linear(5, 7)
    with SavedBytes(model) as saved:
        for images in (2, 6, 3):
            model(torch.randn(images, 5)).sum().backward()
    assert saved.of_images == 4 * 6 * 5


def test_graphs_that_live_together_count_together() -> None:
    model = nn.Linear(5, 7)
    with SavedBytes(model) as saved:
        losses = [model(torch.randn(images, 5)).sum() for images in (2, 6)]
        sum(losses, torch.zeros(())).backward()
    assert saved.of_images == 4 * (2 + 6) * 5


def test_weights_cast_to_bf16_do_not_grow_with_the_images() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    found = {}
    for images in (2, 4):
        with SavedBytes(model) as saved, torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(images, 5).requires_grad_()).sum().backward()
        found[images] = (saved.of_images, saved.of_weights)
    assert found[2][1] == found[4][1] == 2 * (5 * 7 + 7 * 3)
    assert found[4][0] == 2 * found[2][0] > 0


def test_gradients_are_the_same_while_memory_is_measured() -> None:
    model = conadv.split_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    images, gradients = torch.randn(4, 3, 8, 8), []
    for measured in (False, True):
        model.zero_grad()
        if measured:
            with SavedBytes(model):
                model(images).square().sum().backward()
        else:
            model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_activations_are_scaled_to_the_micro_batch() -> None:
    few, many = (try_out("fashion-resnet8-recycled", images=n) for n in (4, 16))
    assert few.recipe.micro_batch == many.recipe.micro_batch
    assert few.memory.activations == pytest.approx(many.memory.activations, rel=0.02)
    assert few.memory.pending == pytest.approx(many.memory.pending, rel=0.02)


def test_optimizers_keep_what_they_keep() -> None:
    weights = try_out("smoke", "optimizer.name=sgd", "optimizer.momentum=0").memory.gradients
    kept = {
        "sgd": (["optimizer.momentum=0"], 0),
        "lars": ([], 1),
        "lamb": ([], 2),
    }
    for name, (changes, states) in kept.items():
        found = try_out("smoke", f"optimizer.name={name}", *changes).memory.optimizer
        assert found == pytest.approx(states * weights, rel=0.001), name
    averaged = try_out("smoke", "train.ema_decay=0.9").memory
    assert averaged.optimizer > 2 * weights
    sharded = try_out("smoke", "hardware.parallel=fsdp", devices=2).memory
    assert sharded.gradients == weights / 2


# -- how it is tried ---------------------------------------------------------------------------


def test_copies_are_there_when_it_counts() -> None:
    deep = try_out("smoke", "method.schedule=lookahead", "method.tau=3", "train.steps=3")
    assert deep.compute_factor == pytest.approx(8 / 3), "even of a run that ends before"
    refined = try_out("smoke", "method.refine=4")
    assert refined.compute_factor == pytest.approx(2)


def test_a_schedule_of_copies_is_tried_where_it_has_most() -> None:
    late = try_out("smoke", "method.schedule=sequential", "method.share=[[0.5, 0], [0.5, 1]]")
    assert late.compute_factor == pytest.approx(8 / 3)
    off = try_out(
        "smoke", "method.schedule=sequential", "method.weight=[[0, 0], [0.5, 0], [0.5, 0.5]]"
    )
    assert off.compute_factor == pytest.approx(8 / 3)
    assert any("the most copies" in note for note in late.notes)


@pytest.mark.parametrize(
    "changes",
    [
        ["method.schedule=vanilla", "method.sam=sam"],
        ["method.schedule=vanilla", "optimizer.variance_reduction=true"],
        ["train.mixup=0.2", "train.cutmix=1"],
        ["norm.statistics=shared"],
        ["batch.norm_group=8"],
        ["data.order_tail=drop"],
        ["train.steps=1"],
    ],
)
def test_other_settings_take_a_step_too(changes: list[str]) -> None:
    assert try_out("smoke", *changes).step_seconds > 0


def test_a_whole_micro_batch_says_nothing_of_scaling() -> None:
    whole = try_out("smoke", images=32)
    assert not any("measured with" in note for note in whole.notes)
    part = try_out("smoke", images=10)
    assert "10 of the 32 images of a micro-batch (as asked)" in part.notes[0]


def test_less_memory_takes_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = trial_step.measure, []

    def measure(recipe, device, images):  # type: ignore[no-untyped-def]
        asked.append(images)
        if images > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(recipe, device, images)

    monkeypatch.setattr(trial_step, "measure", measure)
    found = try_out("smoke")
    assert asked == [8, 4, 2]
    assert "2 of the 32 images of a micro-batch (memory was short)" in found.notes[0]

    def never(recipe, device, images):  # type: ignore[no-untyped-def]
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(trial_step, "measure", never)
    with pytest.raises(
        RecipeError, match="2 images of 16 x 16 pixels does not fit into the memory"
    ):
        try_out("smoke")

    def broken(recipe, device, images):  # type: ignore[no-untyped-def]
        raise RuntimeError("something else")

    monkeypatch.setattr(trial_step, "measure", broken)
    with pytest.raises(RuntimeError, match="something else"):
        try_out("smoke")


def test_devices_share_a_step() -> None:
    one, four = (try_out("smoke", "batch.global_batch=128", devices=n) for n in (1, 4))
    assert (one.micro_steps, four.micro_steps) == (4, 1)
    with pytest.raises(DistributedError, match="Possible numbers of processes are 1, 2"):
        try_out("smoke", devices=3)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(RecipeError, match="only 448 images of synthetic"):
        try_out("smoke", "batch.global_batch=512")
    with pytest.raises(RecipeError, match="give at least 2, for batch norm"):
        try_out("smoke", images=1)


def test_the_random_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    try_out("smoke")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [[], ["data.train_images=100"], ["data.validation=0"]])
@pytest.mark.parametrize("name", ["smoke", "fashion-resnet8-vanilla"])
def test_random_images_have_the_shape_and_number_of_the_real_ones(
    name: str, changes: list[str]
) -> None:
    recipe, device = load_recipe(name, changes), torch.device("cpu")
    real, random = load_splits(recipe, device), RandomSplits.of(recipe, device)
    assert random.train_count == real.train_count
    assert random.facts.channels == real.facts.channels
    assert len(random.facts.classes) == len(real.facts.classes)
    one, other = (s.test().first(3).resident().images for s in (real, random))
    assert one.shape == other.shape
    assert one.dtype == other.dtype


def test_bytes_of_nested_tensors() -> None:
    assert bytes_of({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.int64), None, 1)]}) == 28


# -- the command -------------------------------------------------------------------------------


def test_the_command_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "CONADV_DATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["train", "imagenet-resnet50-recycled-32k", "--dry-run", "--devices", "8"]
    arguments += ["--batch", "8192", "data.root=/nowhere/imagenet", *CPU, *SMALLEST]
    assert main(arguments) == 0
    assert not list(tmp_path.rglob("*"))
    shown = capsys.readouterr().out
    for words in (
        "clean, adversarial; batch norm in groups of 128 images",
        "1,281,167 images of 3 x 32 x 32 in 1,000 classes",
        "8 x 128 images on each of 8 devices",
        "2.00 times ordinary training on 8,192 images",
        "8,192 images (8,192 fresh ones; 16,384 trained on in all branches)",
        "15,639 steps (100.0 epochs), warm-up 3,910",
        "end of warm-up",
        "activations",
        "the data was not opened",
        "8 of the 128 images of a micro-batch (a CPU is slow)",
    ):
        assert words in shown, words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume"], "--resume is for runs"),
        (["--micro-batch", "auto"], "--micro-batch auto is for runs"),
        (["--devices", "3"], "Possible numbers of processes are 1, 2"),
    ],
)
def test_the_command_refuses_what_is_for_runs(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "smoke", "--dry-run", *arguments]) != 0
    assert words in capsys.readouterr().err

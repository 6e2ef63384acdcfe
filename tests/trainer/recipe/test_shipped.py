"""The shipped recipes of published settings against the published tables, written out here."""

import re
from dataclasses import dataclass

import pytest

from conadv.lab.study.cost import compute_factor
from conadv.trainer.input.random_images import images_of
from conadv.trainer.recipe import Recipe, differing_fields, load_recipe, recipe_names
from support.tools import load_tool

IMAGES = 1_281_167
"""Training images of ImageNet-1k (Russakovsky et al., 2015)."""
BATCHES = {"4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "96k": 98304}
METHODS = ("aa", "disadv", "conadv", "conadv-aa", "recycled", "recycled-budget")


@dataclass(frozen=True)
class Lars:
    """Learning rate and warm-up of the released code, top-1 of the paper's table for LARS."""

    lr: float
    warmup: float
    published: float
    group: int


LARS = {
    "4k": Lars(10, 5, 0.769, 64),
    "8k": Lars(10, 5, 0.766, 64),
    "16k": Lars(25, 5, 0.766, 128),
    "32k": Lars(31.2, 25, 0.766, 128),
    "64k": Lars(31.2, 25, 0.753, 128),
    "96k": Lars(43, 41, 0.743, 96),
}
PUBLISHED = {"conadv-96k": 0.753, "conadv-aa-96k": 0.762}
"""Of everything but LARS itself."""


@dataclass(frozen=True)
class Row:
    """A reference convergence point of MLPerf Training 4.0."""

    batch: int
    lr: float
    warmup: int
    momentum: float
    weight_decay: float
    decay_steps: int
    group: int
    to_target: tuple[int, int]


MLPERF = [
    Row(1632, 7.4, 2, 0.9, 5e-5, 27_476, 204, (33, 37)),
    Row(3264, 10.5, 2, 0.9, 5e-5, 14_523, 204, (34, 37)),
    Row(4096, 10, 5, 0.9, 2e-4, 13_137, 64, (39, 42)),
    Row(8192, 17, 5, 0.9, 2e-4, 6_095, 64, (41, 44)),
    Row(13056, 12.8, 9, 0.9, 2.5e-5, 4_710, 204, (44, 46)),
    Row(32768, 21.2, 16, 0.94, 2.5e-5, 2_267, 128, (55, 57)),
    Row(49152, 19.405, 24, 0.951807, 1e-4, 1_846, 256, (67, 69)),
    Row(58880, 23.246, 29, 0.951807, 1e-4, 1_785, 230, (78, 81)),
    Row(65536, 24.699, 31, 0.951807, 1e-4, 1_133, 128, (83, 86)),
    Row(67840, 24.699, 31, 0.951807, 1e-4, 1_133, 424, (85, 87)),
]
LAMB = ("vit-s16", "efficientnet-b0", "efficientnet-b2")
CIFAR = {"128": 128, "256": 256, "512": 512, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192}
CIFAR |= {"16k": 16384, "32k": 32768}

PROMISED = [
    *(f"imagenet-resnet50-{method}-{batch}" for method in ("lars", *METHODS) for batch in BATCHES),
    *(f"imagenet-resnet50-weights-recycled-{batch}" for batch in ("32k", "96k")),
    *(f"mlperf-resnet50-{row.batch}" for row in MLPERF),
    *(f"imagenet-{network}-{batch}-lamb" for network in LAMB for batch in ("4k", "32k")),
    *(f"cifar10-resnet18-lars-{batch}" for batch in CIFAR),
]


def resnet50(method: str, batch: str) -> Recipe:
    return load_recipe(f"imagenet-resnet50-{method}-{batch}")


# -- all of them -------------------------------------------------------------------------------


def test_every_promised_recipe_is_there_once() -> None:
    names = recipe_names()
    assert len(PROMISED) == 42 + 2 + 10 + 6 + 9
    assert set(PROMISED) <= set(names)
    assert len({load_recipe(name).name for name in names}) == len(names)
    descriptions = [load_recipe(name).description for name in names]
    assert len(set(descriptions)) == len(descriptions)


@pytest.mark.parametrize("name", PROMISED)
def test_a_recipe_says_what_was_published_and_that_we_have_not_run_it(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert re.search(rf"\b{recipe.batch.global_batch:,}\b", recipe.description)
    assert not recipe.verified
    assert recipe.source.endswith("Not run by us.")
    if recipe.published is None:
        assert "No accuracy was published" in recipe.source
    else:
        assert f"{recipe.published:.1%}" in recipe.source
        assert "No accuracy" not in recipe.source


@pytest.mark.parametrize("name", [n for n in PROMISED if not n.startswith("cifar")])
def test_imagenet_is_imagenet(name: str) -> None:
    recipe = load_recipe(name)
    size = 260 if "b2" in name else 224
    assert images_of(recipe) == ((3, size, size), 1000, IMAGES), "none are held out"
    assert recipe.data.flip
    assert recipe.data.files.area == (0.08, 1)
    assert recipe.data.files.eval_size == size


# -- the paper ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
def test_lars_has_the_released_settings(batch: str) -> None:
    recipe, row = resnet50("lars", batch), LARS[batch]
    assert recipe.model.name == "torchvision/resnet50"
    assert recipe.model.zero_init_last
    assert recipe.batch.global_batch == BATCHES[batch]
    assert recipe.norm_group == row.group
    assert recipe.method.schedule == "vanilla"
    optimizer = recipe.optimizer
    assert optimizer.name == "lars"
    assert (recipe.peak_lr, optimizer.momentum) == (row.lr, 0.92)
    assert (optimizer.weight_decay, optimizer.trust_coefficient) == (5e-5, 0.001)
    assert optimizer.lr_in_momentum
    schedule = recipe.lr_schedule
    assert (schedule.decay, schedule.power, schedule.end_factor) == ("poly", 1.6, 0)
    assert schedule.warmup_epochs == row.warmup
    assert recipe.train.label_smoothing == 0.1
    assert recipe.published == row.published


def test_the_length_is_a_hundred_epochs_and_for_96k_the_released_1301_steps() -> None:
    steps = {batch: resnet50("lars", batch).total_steps(IMAGES) for batch in BATCHES}
    for batch, size in BATCHES.items():
        if batch != "96k":
            assert steps[batch] == round(100 * IMAGES / size)
    assert steps["96k"] == 1301
    assert round(1301 * 98304 / IMAGES, 1) == 99.8


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_differs_from_lars_in_nothing_else(method: str, batch: str) -> None:
    changed = {
        f.split()[0] for f in differing_fields(resnet50("lars", batch), resnet50(method, batch))
    }
    changed -= {"name"}
    attack = {"method.schedule", "attack.target", "attack.random_start"}
    length = {"lr_schedule.warmup_epochs"} | ({"train.epochs"} if batch != "96k" else set())
    expected = {
        "aa": {"data.files.policy", "method.label"},
        "disadv": attack,
        "conadv": attack,
        "conadv-aa": attack | {"method.view"},
        "recycled": {"method.schedule"},
        "recycled-budget": {"method.schedule", "method.budget", "method.share"} | length,
    }
    assert changed == expected[method]
    recipe = resnet50(method, batch)
    assert recipe.published == PUBLISHED.get(f"{method}-{batch}")
    assert recipe.total_steps(IMAGES) == resnet50("lars", batch).total_steps(IMAGES)
    assert recipe.warmup_steps(IMAGES) == resnet50("lars", batch).warmup_steps(IMAGES)


@pytest.mark.parametrize("batch", BATCHES)
def test_methods_are_the_papers_and_ours(batch: str) -> None:
    methods = {name: resnet50(name, batch).method for name in METHODS}
    assert methods["disadv"].schedule == "sequential"
    for name in ("conadv", "conadv-aa"):
        assert (methods[name].schedule, methods[name].tau) == ("lookahead", 1)
        attack = resnet50(name, batch).attack
        assert (attack.epsilon, attack.steps, attack.norm) == (4 / 255, 1, "linf")
        assert (attack.target, attack.random_start) == ("random", 0.8)
    assert resnet50("aa", batch).data.files.policy == "autoaugment-v0"
    # Three branches, equal thirds: every image counts the same.
    assert (methods["conadv-aa"].view, methods["conadv-aa"].weight) == ("autoaugment-v0", None)
    assert resnet50("conadv-aa", batch).data.files.policy == "none"
    assert (methods["recycled"].schedule, methods["recycled"].budget) == ("recycled", "extra")
    budget = resnet50("recycled-budget", batch)
    assert (budget.method.budget, budget.method.share) == ("fixed", 0.25)
    assert budget.fresh_per_step == 0.75 * BATCHES[batch]


# -- copies of the weights ---------------------------------------------------------------------

RECYCLED = {"weights.schedule", "weights.weight"}
"""What a recipe of the pilots' recycled copies sets beside the radius, which is the default."""
WEIGHTS = {
    "cifar10-5k-resnet9-2500-weights-sequential": ("", {"weights.schedule"}),
    "cifar10-5k-resnet9-2500-weights-recycled": ("", RECYCLED),
    "cifar10-5k-resnet9-2500-weights-recycled-late": ("-weights-recycled", {"weights.share"}),
    "cifar10-5k-resnet9-2500-weights-recycled-budget": (
        "-weights-recycled",
        {"weights.budget", "lr_schedule.warmup_epochs", "train.epochs", "train.steps"},
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_recipes_of_weights_at_2500_differ_in_the_method_alone(name: str) -> None:
    beside, changes = WEIGHTS[name]
    recipe, base = load_recipe(name), load_recipe(f"cifar10-5k-resnet9-2500{beside}")
    assert {f.split()[0] for f in differing_fields(base, recipe)} == {"name"} | changes
    assert recipe.weights.rho == 0.01
    assert (recipe.total_steps(5000), recipe.warmup_steps(5000)) == (240, 40)
    assert not recipe.verified


def test_late_copies_cost_half_as_much() -> None:
    late = load_recipe("cifar10-5k-resnet9-2500-weights-recycled-late")
    assert compute_factor(late) == pytest.approx(1.5, abs=0.01)


def test_whole_cifar10_at_4000_has_weights_moved() -> None:
    recipe, base = (
        load_recipe(f"cifar10-resnet9-{name}") for name in ("4k-weights-recycled", "500")
    )
    changed = {f.split()[0] for f in differing_fields(base, recipe)}
    assert changed == RECYCLED | {"name", "batch.global_batch", "optimizer.lr"}
    assert (recipe.batch.global_batch, recipe.peak_lr) == (4000, 20)


@pytest.mark.parametrize("batch", ["32k", "96k"])
def test_weights_on_imagenet_differ_from_lars_in_nothing_else(batch: str) -> None:
    recipe = resnet50("weights-recycled", batch)
    changed = {f.split()[0] for f in differing_fields(resnet50("lars", batch), recipe)}
    assert changed == RECYCLED | {"name"}
    assert recipe.published is None


# -- MLPerf ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", MLPERF, ids=lambda row: str(row.batch))
def test_mlperf(row: Row) -> None:
    recipe = load_recipe(f"mlperf-resnet50-{row.batch}")
    assert recipe.model.name == "torchvision/resnet50"
    assert (recipe.batch.global_batch, recipe.norm_group) == (row.batch, row.group)
    optimizer, schedule = recipe.optimizer, recipe.lr_schedule
    assert (optimizer.name, optimizer.lr, optimizer.lr_rule) == ("lars", row.lr, "none")
    assert (optimizer.momentum, optimizer.weight_decay) == (row.momentum, row.weight_decay)
    assert optimizer.trust_coefficient == 0.001
    assert (schedule.warmup_epochs, schedule.decay, schedule.power) == (row.warmup, "poly", 2)
    assert schedule.end_factor * row.lr == pytest.approx(1e-4)
    assert recipe.train.label_smoothing == 0.1
    assert (recipe.method.schedule, recipe.published) == ("vanilla", 0.759)
    assert f"epochs {row.to_target[0]}-{row.to_target[1]}" in recipe.source


@pytest.mark.parametrize("row", MLPERF, ids=lambda row: str(row.batch))
def test_mlperf_runs_end_soon_after_the_target_was_reached(row: Row) -> None:
    """Decay steps are the whole run, unless the target was reached later than that."""
    recipe = load_recipe(f"mlperf-resnet50-{row.batch}")
    total, warmup = recipe.total_steps(IMAGES), recipe.warmup_steps(IMAGES)
    per_epoch = IMAGES / row.batch
    assert warmup == round(row.warmup * per_epoch)
    latest = row.to_target[1]
    whole = row.decay_steps >= latest * per_epoch
    assert total == row.decay_steps + (0 if whole else warmup)
    assert latest - 0.1 <= total / per_epoch <= latest + 4.5


# -- LAMB and CIFAR-10 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "growth"), [("4k", 2), ("32k", 16)])
@pytest.mark.parametrize("network", LAMB)
def test_lamb_is_scaled_from_batch_2048(network: str, batch: str, growth: int) -> None:
    recipe = load_recipe(f"imagenet-{network}-{batch}-lamb")
    lr, decay, epochs, mixup = (
        (4e-3, 0.05, 800, 0.8) if "vit" in network else (5e-3, 0.02, 300, 0.1)
    )
    assert recipe.batch.global_batch == 2048 * growth
    assert recipe.optimizer.name == "lamb"
    assert recipe.peak_lr == pytest.approx(lr * growth**0.5)
    assert recipe.optimizer.weight_decay == decay
    assert recipe.lr_schedule.warmup_epochs == 5 * growth
    assert recipe.lr_schedule.decay == "cosine"
    assert recipe.train.epochs == epochs
    assert (recipe.train.mixup, recipe.train.cutmix) == (mixup, 1)
    assert recipe.model.options == {"drop_path_rate": 0.05}
    assert "extrapolated" in recipe.source


@pytest.mark.parametrize("batch", CIFAR)
def test_cifar10_from_128_to_32k(batch: str) -> None:
    recipe = load_recipe(f"cifar10-resnet18-lars-{batch}")
    base = load_recipe("cifar10-resnet18-4k-vanilla")
    assert recipe.batch.global_batch == CIFAR[batch]
    assert recipe.peak_lr == pytest.approx(15 * (CIFAR[batch] / 4096) ** 0.5)
    assert recipe.norm_group == 128
    assert recipe.train.epochs == base.train.epochs == 100
    changed = {f.split()[0] for f in differing_fields(base, recipe)}
    allowed = {"name", "batch.global_batch", "lr_schedule.warmup_epochs"}
    assert changed <= allowed | {"optimizer.lr_rule", "optimizer.lr_base_batch"}


def test_cifar10s_warmup_grows_with_the_batch() -> None:
    found = [load_recipe(f"cifar10-resnet18-lars-{b}").lr_schedule.warmup_epochs for b in CIFAR]
    assert found == sorted(found)
    assert found[-1] == 40


# -- the documentation -------------------------------------------------------------------------


def test_the_documented_table_is_up_to_date() -> None:
    tool = load_tool("recipe_table")
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.render(text) == text, "run python tools/recipe_table.py"
    for name in recipe_names():
        assert f"| `{name}` |" in text


def test_a_recipe_is_put_into_the_table_and_a_page_without_one_is_told() -> None:
    tool = load_tool("recipe_table")
    new = tool.render("a\n<!-- recipes -->\n| made | up |\n<!-- end of recipes -->\nb\n")
    assert "made" not in new
    line = (
        "| `imagenet-resnet50-lars-96k` | 98,304 | 1,301 | 43 | 534 | 96 | vanilla | 74.3% | no |"
    )
    assert line in new
    with pytest.raises(SystemExit, match="0 places for the table"):
        tool.render("a page without a table")

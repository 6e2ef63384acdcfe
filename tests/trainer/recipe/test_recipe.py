"""Recipes: what they hold, how they are read, changed, printed and compared."""

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import conadv
from conadv.errors import RecipeError
from conadv.trainer.recipe import (
    Recipe,
    change_recipe,
    differing_fields,
    dump_recipe,
    load_recipe,
    make_recipe,
    piecewise,
    recipe_names,
)
from conadv.trainer.recipe.describe import all_fields
from conadv.trainer.recipe.yaml12 import parse_yaml

FAMILIES = ["fashion-resnet8", "cifar10-resnet18-4k", "cifar10-resnet18-10k"]


def recipe(*overrides: str) -> Recipe:
    return make_recipe({"name": "x", "train": {"epochs": 10}}, overrides)


# -- the package's own -------------------------------------------------------------------------


def test_the_promised_recipes_are_there() -> None:
    names = set(recipe_names())
    methods = ("vanilla", "sequential", "lookahead", "recycled", "recycled-budget")
    assert {f"fashion-resnet8-{m}" for m in (*methods, "noise", "small-batch")} <= names
    assert {f"cifar10-resnet18-4k-{m}" for m in methods} <= names
    assert "smoke" in names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_where_it_is_from(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.name == name
    assert loaded.description.endswith(".")
    assert len(loaded.source) > 20
    assert make_recipe(yaml.safe_load(dump_recipe(loaded))) == loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_a_family_differ_in_the_method_alone(family: str) -> None:
    vanilla = load_recipe(f"{family}-vanilla")
    for name in recipe_names():
        if not name.startswith(f"{family}-") or name.endswith("small-batch"):
            continue
        fields = {f.split()[0] for f in differing_fields(vanilla, load_recipe(name))}
        fields = {f for f in fields if not f.startswith("method.")} - {"name"}
        budget = {"train.epochs", "lr_schedule.warmup_epochs"} if "budget" in name else set()
        # The learning rate is tuned for each method, from the same grid.
        assert fields - {"optimizer.lr"} == budget, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_budget_takes_as_many_steps_as_vanilla(family: str) -> None:
    vanilla = load_recipe(f"{family}-vanilla")
    budget = load_recipe(f"{family}-recycled-budget")
    assert budget.total_steps(45_000) == vanilla.total_steps(45_000)
    assert budget.warmup_steps(45_000) == vanilla.warmup_steps(45_000)
    assert budget.fresh_per_step == 0.75 * vanilla.fresh_per_step


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("4/255", 4 / 255), ("0.5", 0.5), ("1e-3", 1e-3), ("1_0/2_55", 10 / 255)]
)
def test_a_radius_may_be_a_fraction(text: str, value: float) -> None:
    got = recipe(f"attack.epsilon={text}", f"attack.step_size={text}")
    assert got.attack.epsilon == value
    assert got.attack.step_size == value
    values = {"name": "x", "train": {"steps": 1}, "attack": {"epsilon": text}}
    assert make_recipe(values).attack.epsilon == value


def test_yaml_without_the_traps_of_version_1_1(tmp_path: Path) -> None:
    path = tmp_path / "traps.yaml"
    path.write_text(
        "name: 'off'\ndescription: on\noptimizer: {lr: 1e-3, eps: 1.e-8}\n"
        "data: {flip: on}\nmodel: {pretrained: no}\nseed: 010\ntrain: {steps: 1e3}\n"
    )
    got = load_recipe(path)
    assert (got.name, got.description) == ("off", "on")
    assert (got.optimizer.lr, got.optimizer.eps) == (1e-3, 1e-8)
    assert got.data.flip is True
    assert got.model.pretrained is False
    assert got.seed == 10
    assert got.train.steps == 1000


def test_a_file_or_run_folder_is_read_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("smoke", ["seed=7"])))
    assert load_recipe(folder) == load_recipe(folder / "recipe.yaml")
    assert load_recipe(folder).seed == 7
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {steps: 3}\n")
    assert load_recipe(str(mine)).name == "mine"


def test_recipes_do_not_change() -> None:
    loaded = recipe()
    with pytest.raises(pydantic.ValidationError):
        loaded.seed = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        loaded.optimizer.lr = 3.0  # type: ignore[misc]


# -- overrides ---------------------------------------------------------------------------------


def test_overrides_reach_every_kind_of_field() -> None:
    got = recipe(
        "optimizer.lr=10",
        "method.share=[[0,1],[0.6,0]]",
        "method.schedule=sequential",
        "data.flip=true",
        "train.ema_decay=null",
        "model.options.width=2",
        "optimizer.betas=[0.9, 0.95]",
        "seed=1",
        "seed=2",
    )
    assert got.optimizer.lr == 10
    assert got.method.share == ((0.0, 1.0), (0.6, 0.0))
    assert got.data.flip
    assert got.train.ema_decay is None
    assert got.model.options == {"width": 2}
    assert got.optimizer.betas == (0.9, 0.95)
    assert got.seed == 2, "the last one counts"


def test_giving_steps_takes_back_epochs() -> None:
    changed = recipe("train.steps=5")
    assert (changed.train.epochs, changed.train.steps) == (None, 5)
    with pytest.raises(RecipeError, match="exactly one"):
        recipe("train.steps=5", "train.epochs=5")


def test_change_recipe_checks_again() -> None:
    assert change_recipe(recipe(), ["seed=3"]) == recipe("seed=3")
    with pytest.raises(RecipeError, match="optimizer.lr=-1"):
        change_recipe(recipe(), ["optimizer.lr=-1"])


# -- what follows from the numbers -------------------------------------------------------------


def test_batches_and_steps() -> None:
    got = recipe("batch.global_batch=2000", "batch.micro_batch=100")
    assert (got.micro_steps, got.norm_group, got.fresh_per_step) == (20, 100, 2000)
    assert got.steps_per_epoch(9000) == 4.5
    assert got.total_steps(9000) == 45
    assert change_recipe(got, ["data.order_tail=drop"]).total_steps(9000) == 40
    assert change_recipe(got, ["data.order_tail=keep"]).total_steps(9000) == 50
    assert change_recipe(got, ["train.steps=7"]).total_steps(9000) == 7
    assert change_recipe(got, ["lr_schedule.warmup_epochs=2"]).warmup_steps(9000) == 9


@pytest.mark.parametrize(("total", "micro"), [(4096, 128), (2000, 125), (96, 96), (1000, 125)])
def test_the_micro_batch_is_a_divisor_up_to_128(total: int, micro: int) -> None:
    assert recipe(f"batch.global_batch={total}").micro_batch == micro


@pytest.mark.parametrize("share", [0.1, 0.25, 0.33, 0.5])
def test_fresh_images_are_those_that_the_core_asks_for(share: float) -> None:
    got = recipe("method.schedule=recycled", "method.budget=fixed", f"method.share={share}")
    core = conadv.Recycled(share=share, budget="fixed")
    assert got.fresh_per_micro_batch == core.fresh_images(got.micro_batch)
    assert got.fresh_per_step == got.micro_steps * got.fresh_per_micro_batch


def test_a_fixed_budget_has_a_possible_share_by_itself() -> None:
    got = recipe("method.schedule=recycled", "method.budget=fixed")
    assert got.method.share == 0.25


def test_learning_rate_rules() -> None:
    linear = ("optimizer.lr_rule=linear", "optimizer.lr_base_batch=256")
    assert recipe("optimizer.lr=0.1", "batch.global_batch=1024", *linear).peak_lr == 0.4
    root = ("optimizer.lr_rule=sqrt", "optimizer.lr_base_batch=256")
    assert recipe("optimizer.lr=0.1", "batch.global_batch=1024", *root).peak_lr == 0.2
    assert recipe("optimizer.lr=0.1").peak_lr == 0.1


def test_points_become_the_cores_schedule() -> None:
    share = piecewise(recipe("method.share=[[0,1],[0.5,0]]").method.share)
    assert isinstance(share, conadv.PiecewiseLinear)
    assert share(0.25) == 0.5
    assert piecewise(0.3) == 0.3


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["method.schedule=sequential"], "sequential"),
        (["method.schedule=recycled", "method.budget=fixed"], "recycled, fixed budget"),
        (["method.schedule=lookahead", "method.tau=2"], "lookahead, tau 2"),
        (["method.label=ours"], "ours"),
    ],
)
def test_what_a_table_calls_it(overrides: list[str], label: str) -> None:
    assert recipe(*overrides).method_label == label


# -- printing and comparing --------------------------------------------------------------------


def test_every_field_is_printed_with_what_it_means() -> None:
    text = dump_recipe(recipe())
    for name, field in all_fields().items():
        assert field.description.endswith("."), f"{name} has no sentence"
        key = name.rpartition(".")[2]
        assert f"\n{'  ' * name.count('.')}{key}:" in f"\n{text}"
    words = " ".join(line.strip("# ") for line in text.splitlines())
    assert "Peak learning rate" in words
    assert "Default 0.9. Allowed: a number at least 0 and below 1." in words
    assert "Allowed: stop, skip." in words
    assert "epsilon: 0.01568627450980392  # 4/255" in text


numbers = st.floats(1e-12, 1e6, allow_nan=False)
words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30)


@settings(max_examples=30, deadline=None)
@given(
    lr=numbers,
    decay=st.floats(0, 0.999),
    description=words,
    label=words,
    options=st.dictionaries(st.sampled_from("abc"), numbers | words | st.none() | st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_printing_and_reading_gives_the_same_recipe(
    lr: float, decay: float, description: str, label: str, options: dict[str, Any], seed: int
) -> None:
    """For our reader and for any other reader of YAML."""
    made = make_recipe(
        {
            "name": "x",
            "description": description,
            "seed": seed,
            "train": {"steps": 1},
            "method": {"label": label, "share": [[0, 1], [decay, 0]]},
            "optimizer": {"lr": lr, "weight_decay": decay, "options": options},
        }
    )
    text = dump_recipe(made)
    assert yaml.safe_load(text) == made.model_dump(mode="json")
    assert make_recipe(parse_yaml(text, "text")) == made


@pytest.mark.parametrize("word", ["1e-3", "off", "null", "010", "~", "4:30", "- a", "#", "1_000"])
def test_text_that_looks_like_something_else_stays_text(word: str, tmp_path: Path) -> None:
    made = make_recipe({"name": "x", "description": word, "train": {"steps": 1}})
    path = tmp_path / "x.yaml"
    path.write_text(dump_recipe(made))
    assert load_recipe(path).description == word


def test_differing_fields_names_them_with_both_values() -> None:
    before = recipe("optimizer.lr=1", "model.options.a=1")
    now = recipe("optimizer.lr=10", "method.schedule=noise")
    assert differing_fields(before, before) == []
    assert differing_fields(before, now) == [
        "model.options.a (was 1, now null)",
        "method.schedule (was vanilla, now noise)",
        "optimizer.lr (was 1.0, now 10.0)",
    ]


def test_differing_fields_leaves_out_what_computes_nothing() -> None:
    overrides = ["checkpoint.every_steps=5", "description=other", "data.root=/data"]
    overrides += ["hardware.parallel=fsdp", "hardware.timeout=7"]
    assert differing_fields(recipe(), recipe(*overrides)) == []
    assert len(differing_fields(recipe(), recipe(*overrides), everything=True)) == 5


# -- recipes on top of others ------------------------------------------------------------------


def test_a_recipe_extends_another_field_by_field(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: smoke\nbatch:\n  global_batch: 32\nseed: 3\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nbatch:\n  norm_group: 4\n")
    found, smoke = load_recipe(tmp_path / "mine.yaml"), load_recipe("smoke")
    assert (found.name, found.seed) == ("mine", 3)
    assert (found.batch.global_batch, found.batch.norm_group) == (32, 4)
    assert found.batch.micro_batch == smoke.batch.micro_batch
    assert found.optimizer == smoke.optimizer


def test_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: smoke\nseed: 3\n")
    assert load_recipe(tmp_path / "mine.yaml", ["seed=5"]).seed == 5


def test_recipes_that_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two.yaml\n")
    (tmp_path / "two.yaml").write_text(f"extends: {tmp_path / 'one.yaml'}\n")
    with pytest.raises(RecipeError, match="must stand on its own"):
        load_recipe(tmp_path / "one.yaml")


@pytest.mark.parametrize("base", ["[a, b]", "nowhere", "3"])
def test_what_cannot_be_extended(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(RecipeError, match=r"extends=|'nowhere' is no recipe"):
        load_recipe(tmp_path / "mine.yaml")

"""Bad recipes: each is refused with what was given, what is allowed and what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import conadv
from conadv.errors import RecipeError
from conadv.trainer.recipe import dump_recipe, load_recipe, make_recipe
from conadv.trainer.recipe.describe import all_fields
from conadv.trainer.recipe.updates import OPTIMIZERS, optimizer_names
from conadv.trainer.recipe.yaml12 import parse_yaml


def refusal(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke", overrides)
    return str(caught.value)


def file_refusal(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


# -- names -------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean fashion-resnet8-recycled ") as caught:
        load_recipe("fashion-resnet8-recicled")
    assert "cifar10-resnet18-4k-vanilla" not in str(caught.value), "ninety names help nobody"
    assert "conadv recipes list" in str(caught.value)


def test_a_missing_file_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="without recipe.yaml"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.momentun", "optimizer.momentum"),
        ("lr", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("epsilon", "attack.epsilon"),
        ("batch.globalbatch", "batch.global_batch"),
        ("train.label_smothing", "train.label_smoothing"),
        ("training.epochs", "train.epochs"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key: str, meant: str) -> None:
    message = refusal(f"{key}=1")
    assert f"{key}: no such field. Did you mean {meant}" in message or (
        # Inside an unknown section the section is what is unknown.
        key.startswith("training") and meant.split(".")[0] in message
    )
    assert "Allowed" in message


def test_an_unknown_key_lists_the_allowed_ones_of_its_section() -> None:
    assert "Allowed in checkpoint: every_steps, every_minutes, keep." in refusal("checkpoint.x=1")


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.momentum=1", "optimizer.momentum=1: Allowed: a number at least 0 and below 1."),
        ("optimizer.lr=fast", "optimizer.lr='fast': not a number. Allowed: a number above 0."),
        ("optimizer.lr=off", "optimizer.lr='off': not a number."),
        ("optimizer.lr=true", "optimizer.lr=true: a number is needed"),
        ("optimizer.lr=.inf", "a finite number is needed"),
        ("attack.epsilon=4/0", "attack.epsilon='4/0': not a number."),
        ("attack.steps=2.5", "attack.steps=2.5: a whole number is needed."),
        ("seed=true", "seed=true: a number is needed"),
        ("data.flip=maybe", "data.flip='maybe': true or false is needed."),
        ("name=a/b", "name='a/b':"),
        ("optimizer.betas=[0.9]", "Allowed: two numbers [a, b], each at least 0 and below 1"),
        ("data.files.area=[0.5]", "Allowed: two numbers [from, to], 0 < from <= to <= 1"),
        ("data.files.mean=[a, b]", "Allowed: three numbers [r, g, b]"),
        ("optimizer.betas=[0.9, 1]", "both must be at least 0 and below 1."),
        ("method.share=[[0,1],[2,0]]", "2 is not between 0 and 1."),
        ("method.share=[[0.5,1],[0,0]]", "rising order"),
        ("method.share=[1,0]", "1 is not a pair [progress, value]."),
        ("method.weight=1.5", "1.5 is not between 0 and 1."),
        ("hardware.device=gpu", "hardware.device='gpu'"),
        ("model.options=3", "Allowed: a mapping of names to values."),
    ],
)
def test_an_impossible_value_is_answered_with_the_allowed_ones(override: str, said: str) -> None:
    message = refusal(override)
    assert said in message
    assert "Allowed: " in message


def test_a_wrong_choice_lists_the_choices() -> None:
    assert (
        "method.schedule='recicled': Allowed: vanilla, sequential, lookahead, recycled, noise."
        in refusal("method.schedule=recicled")
    )
    message = refusal("optimizer.name=larz")
    assert "Did you mean lars?" in message
    assert "AdamW" in message


def test_the_optimizers_are_those_that_torch_has() -> None:
    """Their names are read from its source, for importing it takes seconds."""
    kinds = {thing for thing in vars(torch.optim).values() if isinstance(thing, type)}
    classes = {kind.__name__ for kind in kinds if issubclass(kind, torch.optim.Optimizer)}
    assert classes >= {"SGD", "AdamW"}
    assert {*optimizer_names()} == {*OPTIMIZERS} | classes.difference(
        ("Optimizer", "LBFGS", "SparseAdam", "Muon")
    )


def test_grey_levels_are_noticed() -> None:
    assert "attack.epsilon=4 is wider than the pixel range" in refusal("attack.epsilon=4")
    assert "did you mean epsilon=4/255?" in refusal("attack.epsilon=4")
    assert "did you mean step_size=2/255?" in refusal("attack.step_size=2")
    assert "attack.epsilon_min=0.2: from 0 to epsilon=0.1" in refusal(
        "attack.epsilon=0.1", "attack.epsilon_min=0.2"
    )
    assert "attack.block_size=0" in refusal("attack.block_size=0")
    assert "evaluation.robust_epsilon=8 is wider" in refusal("evaluation.robust_epsilon=8")
    assert load_recipe("smoke", ["attack.epsilon=4", "attack.norm=l2"]).attack.epsilon == 4


def test_text_in_a_file_has_to_be_text() -> None:
    with pytest.raises(RecipeError, match="put quotes around it, '5'"):
        make_recipe({"name": 5, "train": {"epochs": 1}})


def test_all_problems_are_listed_at_once() -> None:
    fields = refusal("optimizer.lr=-1", "seed=x", "nonsense=1", "data.dataset=imagenet")
    assert "4 problems:" in fields
    for name in ("optimizer.lr=-1", "seed='x'", "nonsense", "data.dataset='imagenet'"):
        assert f"\n  - {name}" in fields
    across = refusal("attack.epsilon=8", "batch.norm_group=5", "attack.steps=3")
    assert "3 problems:" in across


# -- fields against one another ----------------------------------------------------------------


def test_batches_have_to_divide() -> None:
    message = refusal("batch.global_batch=1000", "batch.micro_batch=96")
    assert "batch.global_batch=1000 is not a multiple of batch.micro_batch=96" in message
    assert "100, 125" in message
    assert "batch.micro_batch=64 is more than batch.global_batch=32" in refusal(
        "batch.global_batch=32", "batch.micro_batch=64"
    )
    message = refusal("batch.global_batch=2003", "batch.micro_batch=null")
    assert "too few images" in message
    assert "such as 2048" in message
    message = refusal("batch.norm_group=12")
    assert "batch.norm_group=12 does not divide micro_batch=32" in message
    assert "8, 16" in message


def test_a_step_needs_no_more_images_than_there_are() -> None:
    recipe = load_recipe("fashion-resnet8-vanilla", ["batch.global_batch=16000"])
    with pytest.raises(RecipeError, match="takes 16000 fresh images per step, but only 9000"):
        recipe.steps_per_epoch(9000)
    with pytest.raises(RecipeError, match="Lower batch.global_batch"):
        recipe.total_steps(9000)


@pytest.mark.parametrize(
    ("setting", "attack"),
    [
        ("target=random", {"target": "random"}),
        ("steps=3", {"steps": 3}),
        ("random_start=0.8", {"random_start": 0.8}),
        ("branch=adversarial", {"branch": "adversarial"}),
        ("mode=eval", {"mode": "eval"}),
    ],
)
def test_recycled_refuses_what_its_gradient_is_not(setting: str, attack: dict[str, object]) -> None:
    message = refusal(f"attack.{setting}")
    with pytest.raises(ValueError, match="recycled takes the gradient") as core:
        conadv.Recycled().resolve(conadv.Attack(0.1, **attack), "clean", "adversarial")  # type: ignore[arg-type]
    assert f"attack.{core.value}" in message
    load_recipe("smoke", [f"attack.{setting}", "method.schedule=sequential"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.budget=fixed", "method.share=0.6"], "method.share=0.6 with budget='fixed'"),
        (["method.budget=fixed", "method.share=[[0,0.2],[1,0]]"], "share follows a schedule"),
        (["method.weight=1"], "method.weight=1"),
        (["method.schedule=noise", "method.budget=fixed"], "only recycled"),
        (["method.schedule=sequential", "method.refine=2"], "only recycled"),
        (["method.schedule=lookahead", "method.tau=0"], "method.schedule=sequential"),
        (["method.tau=2"], "only lookahead"),
        (["train.epochs=1", "lr_schedule.warmup_epochs=2"], "never reach its peak"),
        (["train.epochs=null"], "exactly one"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "momentum above 0"),
        (["model.name=resnet18"], "Did you mean cifar/resnet18 or torchvision/resnet18"),
        (["model.name=cifar/resnet80"], "Did you mean cifar/resnet8"),
        (["model.pretrained=true"], "no weights to download"),
        (
            ["method.schedule=vanilla", "evaluation.branch=adversarial"],
            "evaluation.branch=adversarial with method.schedule=vanilla",
        ),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


# -- overrides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr", "an override is dotted.name=value"),
        ("=3", "an override is dotted.name=value"),
        ("optimizer..lr=3", "an override is dotted.name=value"),
        ("optimizer.lr=", "give a value after the equals sign; null for none"),
        ("optimizer=3", "optimizer is a section"),
        ("method.share=[[0,1]", "not valid YAML"),
    ],
)
def test_a_malformed_override(override: str, said: str) -> None:
    message = refusal(override)
    assert said in message
    assert override in message


def test_malformed_overrides_are_all_listed() -> None:
    message = refusal("a", "b")
    assert "'a'" in message
    assert "'b'" in message


# -- files -------------------------------------------------------------------------------------


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "line 3" in file_refusal(tmp_path, "name: x\ntrain: [1\n")
    assert "does not hold a recipe" in file_refusal(tmp_path, "")
    assert "does not hold a recipe" in file_refusal(tmp_path, "- a\n- b\n")
    assert "cannot be read as text" in file_refusal(tmp_path, b"\xff\xfe\x00")
    assert "given twice" in file_refusal(tmp_path, "seed: 1\nseed: 2\n")
    assert "train is a section" in file_refusal(tmp_path, "train: 3\n")
    assert "no such field" in file_refusal(tmp_path, "train: {steps: 1}\n1: 2\n")


def test_a_recipe_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = f"name: !!python/object/apply:os.mkdir [{marker}]\n"
    assert "not valid YAML" in file_refusal(tmp_path, text)
    assert not marker.exists()
    yaml.unsafe_load(text)  # the attack is a real one
    assert marker.exists()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(all_fields())) | st.text(max_size=8), value=junk)
def test_whatever_a_file_holds_is_accepted_or_refused_in_words(name: str, value: object) -> None:
    values: dict[str, Any] = {"name": "x", "train": {"steps": 1}}
    place = values
    for part in name.split(".")[:-1]:
        place = place.setdefault(part, {})
    place[name.rpartition(".")[2]] = value
    try:
        made = make_recipe(values)
    except RecipeError as error:
        assert str(error).startswith("recipe: ")
    else:
        assert make_recipe(parse_yaml(dump_recipe(made), "text")) == made


def test_a_name_is_needed() -> None:
    with pytest.raises(RecipeError, match="name is missing"):
        make_recipe({"train": {"steps": 1}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("area=[0.5, 2]", "area=[0.5, 2.0]: give two shares, 0 < from <= to <= 1."),
        ("std=[1, 1, 0]", "mean and std: give three numbers each, std above 0."),
        ("eval_resize=200", "eval_resize=200 is less than eval_size=224: a crop cannot be larger"),
    ],
)
def test_fields_of_a_section_that_do_not_go_together(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke", [f"data.files.{override}"])
    assert f"data.files: {said}" in str(caught.value)

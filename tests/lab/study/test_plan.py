"""What a study comes to: cells, runs, overrides, and what is refused."""

import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from conadv.errors import StudyError
from conadv.lab.study import Study, StudyFolder, files, load_study, make_plan, study_names
from conadv.lab.study.cost import compute_factor, estimate, work
from conadv.lab.study.files import make_study
from conadv.lab.study.hypotheses.judge import visible_effects
from conadv.trainer.probe.dry_run import dry_run
from conadv.trainer.recipe import dump_recipe, load_recipe
from conadv.trainer.recipe.yaml12 import parse_yaml
from support.markdown import blocks
from support.studies import prepared, study


def names(given: Study) -> list[str]:
    return [task.name for task in make_plan(given).tasks]


def test_trials_of_every_cell_then_final_runs() -> None:
    assert names(study()) == [
        "vanilla-b16/trial-000",
        "vanilla-b16/trial-001",
        "recycled-b16/trial-000",
        "recycled-b16/trial-001",
        "vanilla-b16/seed-0",
        "recycled-b16/seed-0",
        "vanilla-b16/seed-1",
        "recycled-b16/seed-1",
    ]


def test_the_cells_of_each_hypothesis_come_before_those_of_the_next() -> None:
    methods = {"vanilla": None, "noise": {"settings": {"method.schedule": "noise"}}}
    methods["recycled"] = {"settings": {"method.schedule": "recycled"}}
    stated = {
        "primary": {"method": "recycled", "batch": 32},
        "secondary": {
            "large": {"claim": "interaction", "method": "recycled", "batch": 32, "small_batch": 16}
        },
    }
    plan = make_plan(study(methods=methods, batches=[16, 32], hypotheses=stated))
    assert [*dict.fromkeys(task.cell.name for task in plan.tasks)] == [
        "vanilla-b32",
        "recycled-b32",
        "vanilla-b16",
        "recycled-b16",
        "noise-b16",
        "noise-b32",
    ]


def test_the_best_trials_are_confirmed_before_the_final_runs() -> None:
    given = study(tuning__confirm_seeds=[1001, 1002], tuning__settings={"train.steps": 2})
    plan = make_plan(given)
    confirmed = ["best-1-seed-1001", "best-1-seed-1002", "best-2-seed-1001", "best-2-seed-1002"]
    assert [task.name for task in plan.tasks][4:12] == [
        f"{cell}/{name}" for cell in ("vanilla-b16", "recycled-b16") for name in confirmed
    ]
    assert [task.kind for task in plan.tasks][12:] == ["final"] * 4
    trial, again = (plan.make_recipe(plan.tasks[n]) for n in (0, 4))
    assert again == trial.model_copy(update={"seed": 1001})
    (costs, _) = estimate(plan, 100.0)
    assert (costs.trials, costs.finals) == (2 + 4, 2)


def test_every_method_has_as_many_trials_unless_it_takes_anothers() -> None:
    methods = {
        "vanilla": None,
        "longer": {"settings": {"train.steps_factor": 2}, "tuned_as": "vanilla"},
        "small": {"batches": [16]},
    }
    found = names(study(methods=methods, batches=[16, 32]))
    for cell in ("vanilla-b16", "vanilla-b32", "small-b16"):
        assert sum(name.startswith(f"{cell}/trial") for name in found) == 2
    assert not [name for name in found if name.startswith(("longer-b16/trial", "small-b32"))]
    assert "longer-b32/seed-1" in found


def test_trials_and_final_runs_differ_in_what_they_may_see() -> None:
    plan = make_plan(study(tuning__settings={"train.steps": 2}))
    trial, final = plan.make_recipe(plan.tasks[0]), plan.make_recipe(plan.tasks[4])
    assert (trial.evaluation.test, trial.data.validation, trial.seed) == (False, 0.25, 1000)
    assert (final.evaluation.test, final.data.validation, final.seed) == (True, 0.0, 0)
    assert (trial.train.steps, final.train.steps) == (2, 3)


def test_for_orientation_no_run_sees_the_test_images() -> None:
    plan = make_plan(study(final={"seeds": [0], "validation": 0.25, "test": False}))
    assert not any(plan.make_recipe(task).evaluation.test for task in plan.tasks)
    with pytest.raises(StudyError, match=r"final\.test=false.*give final\.validation"):
        study(final={"seeds": [0], "test": False})


def test_ranges_follow_the_recipe_and_the_method() -> None:
    vanilla, recycled = make_plan(study()).cells
    assert list(vanilla.space) == ["optimizer.lr"]
    assert list(recycled.space) == ["optimizer.lr", "attack.epsilon"]
    assert vanilla.space["optimizer.lr"].base == 2.0  # smoke's
    assert recycled.space["attack.epsilon"].high == pytest.approx(8 / 255)
    own = {"recycled": {"space": {"method.rho": {"low": 0.01, "high": 1}}}}
    (cell,) = make_plan(study(methods=own)).cells
    assert "method.rho" in cell.space


def test_the_command_remakes_the_recipe() -> None:
    plan = make_plan(study())
    task, values = plan.tasks[-1], {"optimizer.lr": 0.3, "attack.epsilon": 1 / 255}
    program, command, recipe, *rest = shlex.split(plan.command(task, values, Path("o")))
    assert (program, command, rest[-2:]) == ("conadv", "train", ["--out", "o"])
    assert load_recipe(recipe, rest[:-2]) == plan.make_recipe(task, values)
    assert load_recipe(recipe, rest[:-2]).attack.epsilon == pytest.approx(1 / 255, rel=1e-5)


def test_batches_have_settings_and_sizes_that_fit() -> None:
    batches = {16: None, 48: {"lr_schedule.warmup_epochs": 1}, 32: {"batch.micro_batch": 8}}
    plan = make_plan(study(batches=batches))
    made = {c.batch: plan.make_recipe(t) for t in plan.tasks for c in [t.cell]}
    assert {b: (r.batch.global_batch, r.micro_batch) for b, r in made.items()} == {
        16: (16, 16),
        48: (48, 24),  # the largest divisor up to the recipe's 32
        32: (32, 8),
    }
    assert [r.lr_schedule.warmup_epochs for r in made.values()] == [0.5, 1, 0.5]


def test_methods_that_a_table_would_call_alike_keep_their_own_names() -> None:
    gentle = {"method.schedule": "recycled", "attack.epsilon": "1/255"}
    methods = {
        "recycled": {"settings": {"method.schedule": "recycled"}},
        "gentle": {"settings": gentle},
        "vanilla": {"settings": {"method.schedule": "vanilla"}},
        "twice": {"settings": {"method.schedule": "vanilla", "train.steps_factor": 2}},
    }
    plan = make_plan(study(methods=methods))
    labels = {t.cell.method: plan.make_recipe(t).method_label for t in plan.tasks}
    assert labels == {
        "recycled": "recycled",
        "gentle": "gentle",
        "vanilla": "vanilla",
        "twice": "vanilla, 2x steps",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final__seeds": [0, 1000]}, "tuning.seed=1000 is one of final.seeds"),
        ({"final__seeds": [0, 0]}, "final.seeds: each only once"),
        ({"tuning__confirm_seeds": [1, 7]}, r"confirm_seeds: \[1\] are final.seeds too"),
        ({"tuning__confirm_seeds": [1000]}, r"\[1000\]: each only once, and not the trials' own"),
        (
            {"tuning__confirm_seeds": [7], "tuning__finalists": 3},
            "finalists=3: there are only 2 trials",
        ),
        ({"tuning__finalists": 1}, "tuning.finalists: Input should be greater than or equal to 2"),
        ({"tuning__trails": 3}, "tuning.trails: no such field. Allowed: trials, validation"),
        ({"methods": {"a": {"tuned_as": "b"}}}, r"tuned_as=b: name another of \['a'\]"),
        ({"methods": {"a": {"batches": [7]}}}, r"methods.a.batches: 7 is none of \[16\]"),
        ({"tuning__first": [{"x.y": 1}]}, "tuning.first: x.y is not tuned"),
        ({"tuning__first": [{"optimizer.lr": 9}]}, "optimizer.lr=9 is outside of its range"),
        ({"tuning__space": {"optimizer.lr": {"low": 2, "high": 1}}}, "must be below high=1"),
        ({"tuning__space": {"optimizer.lr": {"low": 0, "high": 1}}}, "above 0 on a logarithmic"),
        ({"tuning__validation": 0}, "tuning.validation: Input should be greater than 0"),
        ({"settings": {"optimizer.lrr": 1}}, "Did you mean optimizer.lr"),
        ({"batches": [100]}, "vanilla-b100/.*takes 100 fresh images per step, but only"),
        ({"tuning__space": {"optimizer.name": {"low": 1, "high": 2, "relative": True}}}, "'lars'"),
        ({"tuning__space": {"lr": {"low": 1, "high": 2}}}, "a recipe has no such setting"),
        ({"recipe": "smokey"}, "'smokey' is no recipe. Did you mean smoke"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make_plan(study(**changes))


def test_a_missing_study_names_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such study.*smoke"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(StudyError, match="does not hold a study"):
        load_study(tmp_path / "list.yaml")


@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_are_possible(name: str) -> None:
    plan = make_plan(load_study(name))
    assert plan.study.name == name and plan.study.description
    for cell in plan.cells:
        own = [t for t in plan.tasks if t.cell == cell]
        assert sum(t.kind == "final" for t in own) == len(plan.study.seeds_of(cell.method))


@pytest.mark.parametrize("name", [n for n in study_names() if n.startswith("evidence-")])
def test_studies_that_are_to_decide_say_what_and_how_well(name: str) -> None:
    given = load_study(name)
    assert given.hypotheses is not None and len(given.final.seeds) >= 3
    assert [*visible_effects(given)] == [*given.hypotheses.named]
    path = resources.files("conadv") / "studies" / f"{name}.yaml"
    assert "Left out beforehand" in path.read_text("utf-8")
    for cell in make_plan(given).cells:
        settings = load_recipe(given.recipe, cell.overrides).data
        assert (
            settings.dataset != "cifar10" or settings.train_images is None or settings.test_unused
        )


def test_a_method_may_be_run_on_part_of_the_seeds() -> None:
    given = study(final__seeds=[4, 5, 6])
    methods = {**given.model_dump()["methods"], "recycled": {"seeds": [5]}}
    finals = [t.name for t in make_plan(study(final__seeds=[4, 5, 6], methods=methods)).tasks]
    assert [name for name in finals if "/seed" in name] == [
        "vanilla-b16/seed-4",
        "vanilla-b16/seed-5",
        "recycled-b16/seed-5",
        "vanilla-b16/seed-6",
    ]
    with pytest.raises(StudyError, match=r"methods.recycled.seeds: give some of \[4, 5, 6\]"):
        study(final__seeds=[4, 5, 6], methods={**methods, "recycled": {"seeds": [7]}})


def test_the_study_of_the_documentation_is_possible() -> None:
    page = Path(__file__).resolve().parents[3] / "docs/study.md"
    shown = [b.code for b in blocks(page) if b.language == "yaml"]
    plan = make_plan(make_study(parse_yaml("\n".join(shown), "docs"), "docs", "docs"))
    assert plan.study.hypotheses is not None and len(plan.study.hypotheses.named) == 4
    assert [cell.name for cell in plan.cells] == [
        "vanilla-b100",
        "recycled-b100",
        "recycled-affine-b100",
        "vanilla-b500",
        "vanilla-2x-b500",
        "recycled-b500",
        "recycled-affine-b500",
    ]
    assert len([t for t in plan.tasks if t.kind == "trial"]) == 5 * 6


# -- the folder ------------------------------------------------------------------------------


def test_a_folder_keeps_its_study_and_lets_it_grow(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    again = folder.prepare(study())
    assert again == plan.study == load_study(folder.root)
    grown = study(final__seeds=[0, 1, 2], batches=[16, 32])
    assert folder.prepare(grown).final.seeds == (0, 1, 2)
    for other in (study(), study(final__seeds=[0, 1, 2], batches=[16, 32], tuning__trials=3)):
        with pytest.raises(StudyError, match="only seeds, methods and batches may be added"):
            folder.prepare(other)


def test_a_method_may_be_run_at_more_batches_but_not_at_fewer(tmp_path: Path) -> None:
    def given(*batches: int, trials: int = 2) -> Study:
        methods = {"vanilla": None, "recycled": {"batches": list(batches)}}
        return study(methods=methods, batches=[16, 32], tuning__trials=trials)

    folder, _ = prepared(tmp_path, given(32))
    assert "recycled-b16/seed-1" in names(folder.prepare(given(16, 32)))
    with pytest.raises(StudyError, match="in which methods differ"):
        folder.prepare(given(16))
    with pytest.raises(StudyError, match="in which tuning differ"):
        folder.prepare(given(16, 32, trials=3))


def test_a_folder_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/letters.txt").write_text("dear")
    with pytest.raises(StudyError, match="is no study folder"):
        prepared(tmp_path)
    assert [p.name for p in (tmp_path / "study").iterdir()] == ["letters.txt"]
    with pytest.raises(StudyError, match="has no study.yaml"):
        StudyFolder(tmp_path).require_study()


def test_a_recipe_of_ones_own_goes_into_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(dump_recipe(load_recipe("smoke", ["optimizer.lr=7"])))
    text = "recipe: mine.yaml\nmethods: {vanilla: }\nbatches: [64]\nfinal: {validation: 0.1}\n"
    (tmp_path / "asked.yaml").write_text(text)
    folder, plan = prepared(tmp_path, load_study(tmp_path / "asked.yaml"))
    (tmp_path / "mine.yaml").unlink()
    assert plan.make_recipe(plan.tasks[0]).optimizer.lr == 7
    assert str(folder.root) in plan.recipe and folder.require_study() == plan.study


def test_a_study_keeps_its_recipe_when_the_package_s_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(tmp_path / "study")
    assert folder.prepare(study()).recipe == study().recipe  # by name, while it is the same

    changed = load_recipe(study().recipe, ["optimizer.weight_decay=0.125"])
    load = files.load_recipe
    monkeypatch.setattr(
        files, "load_recipe", lambda given: changed if given == study().recipe else load(given)
    )
    with pytest.raises(StudyError, match=r"in which recipe differ.*conadv study "):
        folder.prepare(study())
    again = folder.prepare(load_study(folder.root))
    assert again.recipe == str(folder.base)
    plan = make_plan(again)
    assert plan.make_recipe(plan.tasks[0], {}).optimizer.weight_decay != 0.125
    assert load_study(folder.study).recipe == str(folder.base)
    monkeypatch.chdir(tmp_path)  # a folder by another path is the same one
    assert StudyFolder("study").prepare(load_study(folder.root)) == load_study("study")


# -- what it costs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.schedule=vanilla"],
        ["method.schedule=noise", "method.share=0.5"],
        ["method.schedule=sequential"],
        ["method.schedule=lookahead", "method.tau=1", "attack.steps=2"],
        ["method.schedule=recycled"],
        ["method.schedule=recycled", "method.budget=fixed", "method.share=0.25"],
        ["method.schedule=vanilla", "method.view=plain"],
        ["method.schedule=recycled", "method.budget=fixed", "method.view=plain"],
        ["method.schedule=vanilla", "method.sam=sam"],
        ["method.schedule=vanilla", "method.sam=async"],
    ],
)
def test_compute_is_what_the_trainer_counts(overrides: list[str]) -> None:
    recipe = load_recipe("smoke", [*overrides, "hardware.device=cpu"])
    assert compute_factor(recipe) == pytest.approx(dry_run(recipe).compute_factor, abs=1e-6)


def test_shares_that_follow_a_schedule_are_averaged() -> None:
    points = "method.share=[[0, 1], [0.5, 1], [0.5, 0], [1, 0]]"
    recipe = load_recipe("smoke", ["method.schedule=recycled", points])
    assert compute_factor(recipe) == pytest.approx(1.5, abs=0.01)


def test_estimates_scale_with_speed_and_length() -> None:
    slow, fast = (sum(c.seconds for c in estimate(make_plan(study()), r)) for r in (10, 1000))
    assert slow > fast
    plan = make_plan(study(methods={"v": {"settings": {"method.schedule": "vanilla"}}}))
    assert work(plan.make_recipe(plan.tasks[0])) == 3 * 16
    (cost,) = estimate(plan, 1.0)
    # 48 images; 48 training images scored forward; 16 held out, scored once per epoch of 3 steps.
    assert cost.trial_seconds == pytest.approx(1 + 48 + (48 + 16) / 3)
    with pytest.raises(StudyError, match="give a number above 0"):
        estimate(plan, 0)


def test_make_study_says_where() -> None:
    with pytest.raises(StudyError, match="x.yaml:\n  - recipe: Field required"):
        make_study({"methods": {"a": None}, "batches": [1]}, "x", "x.yaml")

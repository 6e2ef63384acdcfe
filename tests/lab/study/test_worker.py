"""What a worker does with runs that end in every way, with made-up training."""

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from conadv.errors import DataError, Interrupted, NonFiniteError, RecipeError
from conadv.lab.study import Plan, StudyFolder
from conadv.lab.study.outcomes import Outcome, read_outcomes
from conadv.lab.study.search import Search
from conadv.lab.study.status import Watch
from conadv.lab.study.tables import write_tables
from conadv.lab.study.worker import ProcessUnusable
from conadv.trainer.recipe import Recipe
from conadv.trainer.run.lock.claims import Claims
from conadv.trainer.run.result import Result
from support.studies import FakeTraining, prepared, study, worker


def outcomes(folder: StudyFolder, plan: Plan) -> dict[str, Outcome]:
    return read_outcomes(folder.tasks, [task.name for task in plan.tasks])


def tuned(folder: StudyFolder, plan: Plan) -> Any:
    write_tables(folder, plan, Search(folder.storage, plan.study))
    return json.loads(folder.tuned.read_text())["cells"]


class Failing(FakeTraining):
    """Fails where it is told to."""

    def __init__(self, name: str, seed: int | None, error: BaseException) -> None:
        super().__init__()
        self.name, self.seed, self.error = name, seed, error

    def __call__(self, recipe: Recipe, out: Path, **options: Any) -> Result:
        result = super().__call__(recipe, out, **options)
        if recipe.name == self.name and self.seed in (None, recipe.seed):
            raise self.error
        return result


def test_every_run_once_and_final_runs_with_the_best_settings(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(tuning__trials=5))
    make = FakeTraining()
    worker(folder, make).work()
    found = outcomes(folder, plan)
    assert len(make.recipes) == len(plan.tasks) == len(found) == 14
    assert len(set(make.folders)) == 14
    for cell, chosen in tuned(folder, plan).items():
        trials = [o for name, o in found.items() if name.startswith(f"{cell}/trial")]
        best = max(trials, key=lambda o: o.result["val_accuracy"])
        assert len(trials) == 5 and chosen["chosen"] == best.values
        for name, outcome in found.items():
            if name.startswith(f"{cell}/seed"):
                assert outcome.values == best.values
    worker(folder, make).work()
    assert len(make.recipes) == 14  # nothing is left to be done


class Lucky(FakeTraining):
    """The trials' own seed favours high learning rates, every other one low ones."""

    def __call__(self, recipe: Recipe, out: Path, **options: Any) -> Result:
        result = super().__call__(recipe, out, **options)
        if result.val_accuracy is None:
            return result
        rate = recipe.optimizer.lr / 100
        accuracy = 0.5 + rate if recipe.seed == 1000 else 0.8 - 3 * rate
        return dataclasses.replace(result, val_accuracy=accuracy)


def test_what_was_luck_on_one_seed_is_not_chosen(tmp_path: Path) -> None:
    given = study(tuning__trials=5, tuning__finalists=3, tuning__confirm_seeds=[1001, 1002])
    folder, plan = prepared(tmp_path, given)
    worker(folder, Lucky()).work()
    found = outcomes(folder, plan)
    assert len(found) == len(plan.tasks) == 2 * (5 + 6 + 2)
    for cell, entry in tuned(folder, plan).items():
        trials = {t["number"]: t for t in entry["trials"]}
        rates = sorted((t["values"]["optimizer.lr"] for t in trials.values()), reverse=True)
        # The three highest were the best on the trials' seed; the lowest of them on the others.
        assert entry["chosen"]["optimizer.lr"] == rates[2]
        assert [trials[c["trial"]]["values"]["optimizer.lr"] for c in entry["confirmed"]] == [
            rates[2],
            rates[1],
            rates[0],
        ]
        for one in entry["confirmed"]:
            own, *others = one["accuracies"]
            rate = trials[one["trial"]]["values"]["optimizer.lr"]
            assert own == trials[one["trial"]]["accuracy"]
            assert others == pytest.approx([0.8 - 0.03 * rate] * 2)
        best = entry["confirmed"][0]["accuracies"]
        assert entry["val_accuracy"] == pytest.approx(sum(best) / 3)
        for seed in (0, 1):
            assert found[f"{cell}/seed-{seed}"].values == entry["chosen"]
    again = found["recycled-b16/best-1-seed-1002"]
    assert (again.kind, again.number) == ("confirm", 1002)
    assert "seed=1002" in again.command and again.result["test_accuracy"] is None


def test_final_runs_wait_for_every_confirmation(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(tuning__confirm_seeds=[1001]))
    elsewhere = "vanilla-b16/best-2-seed-1001"
    claims = Claims(folder.tasks, 60)
    make = FakeTraining()

    class Late(FakeTraining):
        """When it is asked for the first final run of vanilla, nobody may be left to wait for."""

        def __call__(self, recipe: Recipe, out: Path, **options: Any) -> Result:
            name = f"{out.parent.name}/{out.name}"
            if name.startswith("vanilla-b16/seed"):
                assert (folder.tasks / elsewhere / "outcome.json").exists()
            elif name == "recycled-b16/seed-1" and not made:
                made.append(name)
                held.release()  # the other worker gives it back
            return make(recipe, out, **options)

    made: list[str] = []
    held = claims.take(elsewhere)
    assert held is not None
    worker(folder, Late()).work()
    found = outcomes(folder, plan)
    assert made and len(found) == len(plan.tasks)
    assert {outcome.status for outcome in found.values()} == {"finished"}


def test_the_first_trials_of_a_grid_do_not_wait_for_one_another(tmp_path: Path) -> None:
    space = {"optimizer.lr": {"low": 0.5, "high": 2, "relative": True}}
    grid = {"tuning__sampler": "grid", "tuning__trials": 4, "tuning__space": space}
    folder, plan = prepared(tmp_path, study(methods={"vanilla": None}, **grid))
    trials = [task.name for task in plan.tasks if task.kind == "trial"]
    held = Claims(folder.tasks, 60).take(trials[0])
    assert held is not None
    make = FakeTraining()
    own = worker(folder, make)
    thread = threading.Thread(target=own.work)
    thread.start()
    while len(make.recipes) < 2:
        thread.join(0.01)
        assert thread.is_alive()
    assert {*outcomes(folder, plan)} <= {*trials[1:3]}
    held.release()
    thread.join()
    rates = [outcomes(folder, plan)[name].values["optimizer.lr"] for name in trials]
    middle = rates[0]
    assert rates[:3] == [middle, middle / 2, middle * 2] and rates[3] not in rates[:3]


def test_a_confirmation_that_diverges_speaks_against_its_settings(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(tuning__confirm_seeds=[1001]))

    def make(recipe: Recipe, out: Path, **options: Any) -> Result:
        if out.name == "best-1-seed-1001":
            raise NonFiniteError("NaN")
        return FakeTraining()(recipe, out, **options)

    worker(folder, make).work()
    for entry in tuned(folder, plan).values():
        first, second = entry["confirmed"]
        assert entry["chosen_trial"] == first["trial"] and second["accuracies"][1] == 0.0
        ranked = sorted(entry["trials"], key=lambda trial: -trial["accuracy"])
        assert first["trial"] == ranked[1]["number"]


def test_where_too_few_trials_end_the_rest_is_chosen_from(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(tuning__confirm_seeds=[1001]))

    def make(recipe: Recipe, out: Path, **options: Any) -> Result:
        if out.name == "trial-000":
            raise RecipeError("impossible")
        return FakeTraining()(recipe, out, **options)

    worker(folder, make).work()
    found = outcomes(folder, plan)
    lost = found["vanilla-b16/best-2-seed-1001"]
    assert (lost.status, lost.message) == (
        "failed",
        "fewer than 2 trials of its cell did not fail",
    )
    for entry in tuned(folder, plan).values():
        assert entry["chosen_trial"] == 1 and len(entry["confirmed"]) == 1
    assert found["vanilla-b16/seed-0"].status == "finished"
    watch = Watch(folder, plan)
    watch.look()
    assert [row["confirmations"] for row in watch.rows()] == ["2/2 (1 not finished)"] * 2


def test_trials_hold_no_test_figure_and_final_runs_no_choice(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    make = FakeTraining()
    worker(folder, make).work()
    for recipe in make.recipes:
        assert recipe.evaluation.test == (recipe.data.validation == 0) == (recipe.seed != 1000)
    for outcome in outcomes(folder, plan).values():
        is_trial = outcome.kind == "trial"
        assert (outcome.result["test_accuracy"] is None) == is_trial
        assert (outcome.result["val_accuracy"] is None) == (not is_trial)


def test_two_workers_share_the_runs(tmp_path: Path) -> None:
    given = study(final__seeds=list(range(12)), tuning__trials=6)
    folder, plan = prepared(tmp_path, given)
    made = [FakeTraining(), FakeTraining()]
    gate = threading.Barrier(2)

    def go(make: FakeTraining) -> None:
        own = worker(folder, make)
        gate.wait()
        own.work()

    threads = [threading.Thread(target=go, args=(make,)) for make in made]
    [t.start() for t in threads]
    [t.join() for t in threads]
    folders = [f for make in made for f in make.folders]
    assert len(folders) == len(set(folders)) == len(plan.tasks)
    assert all(make.folders for make in made)
    assert len(outcomes(folder, plan)) == len(plan.tasks)
    for cell in tuned(folder, plan).values():
        assert [t["number"] for t in cell["trials"]] == list(range(6))


def test_a_run_that_diverges_is_noted_and_the_study_goes_on(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    error = NonFiniteError("the loss is NaN")
    worker(folder, Failing("vanilla-b16", 1, error)).work()
    found = outcomes(folder, plan)
    bad = found["vanilla-b16/seed-1"]
    assert (bad.status, bad.message, bad.result) == ("diverged", "the loss is NaN", {})
    assert sum(o.status == "finished" for o in found.values()) == 7
    tuned(folder, plan)
    rows = json.loads(folder.summary.read_text())["runs"]
    assert [r["status"] for r in rows] == ["finished", "finished", "diverged", "finished"]
    assert folder.table.read_text().count("\n") == 5


def test_trials_that_diverge_count_as_the_worst(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    make = Failing("vanilla-b16", 1000, NonFiniteError("NaN"))
    worker(folder, make).work()
    found = outcomes(folder, plan)
    trials = tuned(folder, plan)["vanilla-b16"]["trials"]
    assert [(t["accuracy"], t["message"]) for t in trials] == [(0.0, "NaN")] * 2
    for seed in (0, 1):
        bad = found[f"vanilla-b16/seed-{seed}"]
        assert bad.status == "failed" and bad.message == "all trials of its cell failed"
    assert found["recycled-b16/seed-0"].status == "finished"
    assert not [r for r in make.recipes if r.name == "vanilla-b16" and r.seed != 1000]


def test_what_the_package_refuses_is_noted(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    worker(folder, Failing("recycled-b16", 0, RecipeError("impossible"))).work()
    bad = outcomes(folder, plan)["recycled-b16/seed-0"]
    assert (bad.status, bad.message) == ("failed", "impossible")


def test_after_a_crash_the_process_asks_to_be_replaced(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    make = Failing("vanilla-b16", 1000, RuntimeError("CUDA error"))
    for _ in range(2):
        with pytest.raises(ProcessUnusable):
            worker(folder, make).work()
    worker(folder, make).work()
    found = outcomes(folder, plan)
    assert found["vanilla-b16/trial-000"].message == "RuntimeError: CUDA error"
    trace = (folder.tasks / "vanilla-b16/trial-000/error.txt").read_text()
    assert "Traceback" in trace and "CUDA error" in trace
    assert len(found) == len(plan.tasks)
    # Nothing is known of its settings, so the sampler is told nothing.
    assert [t["accuracy"] for t in tuned(folder, plan)["vanilla-b16"]["trials"]] == [None] * 2


def test_data_that_cannot_be_had_is_no_runs_fault(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    with pytest.raises(DataError, match="no network"):
        worker(folder, Failing("vanilla-b16", None, DataError("no network"))).work()
    assert outcomes(folder, plan) == {}
    worker(folder, FakeTraining()).work()  # when it is there
    assert {o.status for o in outcomes(folder, plan).values()} == {"finished"}


def test_an_interrupted_run_is_given_back(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    with pytest.raises(Interrupted):
        worker(folder, Failing("vanilla-b16", 1, Interrupted("by SIGINT"))).work()
    assert "vanilla-b16/seed-1" not in outcomes(folder, plan)
    make = FakeTraining()
    worker(folder, make).work()
    assert make.folders[0] == folder.runs / "vanilla-b16/seed-1"
    assert len(outcomes(folder, plan)) == len(plan.tasks)


def test_a_stop_heard_during_the_last_evaluation_stops_after_the_run(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)

    def make(recipe: Recipe, out: Path, **options: Any) -> Result:
        options["stop"].ask("SIGTERM")
        return FakeTraining()(recipe, out, **options)

    with pytest.raises(Interrupted, match="stopped by SIGTERM between two runs"):
        worker(folder, make).work()
    assert list(outcomes(folder, plan)) == ["vanilla-b16/trial-000"]


def test_a_worker_whose_run_was_taken_over_leaves_it_alone(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    made: list[str] = []

    def make(recipe: Recipe, out: Path, **options: Any) -> Result:
        made.append(out.name)
        if len(made) == 1:  # asleep for long: somebody else has gone on, and has finished
            task = folder.tasks / "vanilla-b16/trial-000"
            (task / "claim-1.json").write_text("{}")
            other = FakeTraining()(recipe, out, **options)
            assert other.val_accuracy is not None
            (task / "outcome.json").write_text(
                json.dumps({**OUTCOME, "message": "by the other one"})
            )
        return FakeTraining()(recipe, out, **options)

    worker(folder, make).work()
    assert outcomes(folder, plan)["vanilla-b16/trial-000"].message == "by the other one"
    assert len(made) == len(plan.tasks)


OUTCOME = {
    "task": "vanilla-b16/trial-000",
    "kind": "trial",
    "method": "vanilla",
    "batch": 16,
    "number": 0,
    "status": "failed",
    "message": None,
    "folder": "runs/vanilla-b16/trial-000",
    "command": "",
    "values": {},
    "seconds": 0,
    "worker": "other",
    "result": {},
}


def test_a_run_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(attempts=2))
    task = folder.tasks / "vanilla-b16/seed-0"
    task.mkdir(parents=True)
    gone = {"host": "x", "pid": 1}
    for generation in range(2):
        (task / f"claim-{generation}.json").write_text(json.dumps(gone))
    own = worker(folder, FakeTraining())
    own.claims = Claims(folder.tasks, 0.0)  # nobody else is there
    own.work()
    found = outcomes(folder, plan)
    bad = found["vanilla-b16/seed-0"]
    assert bad.status == "failed" and "2 workers died" in str(bad.message)
    assert sum(o.status == "finished" for o in found.values()) == len(plan.tasks) - 1


def test_a_worker_stops_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    with pytest.raises(Interrupted, match="the end of the process that had started it"):
        worker(folder, FakeTraining(), parent=os.getpid()).work()
    assert outcomes(folder, plan) == {}


def test_methods_tuned_as_another_wait_for_it(tmp_path: Path) -> None:
    methods = {
        "longer": {"settings": {"train.steps_factor": 2}, "tuned_as": "vanilla"},
        "vanilla": {"settings": {"method.schedule": "vanilla"}},
    }
    folder, plan = prepared(tmp_path, study(methods=methods))
    worker(folder, FakeTraining()).work()
    found = outcomes(folder, plan)
    assert found["longer-b16/seed-0"].values == found["vanilla-b16/seed-1"].values != {}
    assert tuned(folder, plan)["longer-b16"] == {"tuned_as": "vanilla-b16"}


def test_without_trials_the_recipe_counts(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, study(tuning__trials=0))
    make = FakeTraining()
    worker(folder, make).work()
    assert len(make.recipes) == len(plan.tasks) == 4
    assert {recipe.optimizer.lr for recipe in make.recipes} == {2.0}


def test_a_best_value_at_the_edge_of_its_range_is_said(tmp_path: Path) -> None:
    first = [{"optimizer.lr": 4}, {"optimizer.lr": 1}]
    folder, plan = prepared(tmp_path, study(tuning__first=first))

    class Large(FakeTraining):
        def __call__(self, recipe: Recipe, out: Path, **options: Any) -> Result:
            found = super().__call__(recipe, out, **options)
            return dataclasses.replace(found, val_accuracy=recipe.optimizer.lr / 100)

    worker(folder, Large()).work()
    assert tuned(folder, plan)["vanilla-b16"]["at_the_edge"] == ["optimizer.lr"]


def test_progress_is_by_compute_and_sees_runs_at_work(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    watch = Watch(folder, plan)
    # recycled costs twice as much: of 3 steps of 16 images in 4 runs each.
    assert watch.total == pytest.approx(4 * 48 + 4 * 96)
    claim = Claims(folder.tasks, 60).take("recycled-b16/seed-0")
    assert claim is not None
    run = folder.runs / "recycled-b16/seed-0"
    run.mkdir(parents=True)
    (run / "timing.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step"')
    (one,) = watch.working()
    assert (one.task, one.share) == ("recycled-b16/seed-0", pytest.approx(2 / 3))
    claim.release()
    assert watch.working() == []
    assert watch.partial() == pytest.approx(64)  # what was stopped is not lost
    worker(folder, FakeTraining()).work()
    assert len(watch.look()) == 8 and watch.look() == [] and watch.finished
    assert watch.compute == watch.total and watch.working() == []
    assert watch.rows()[0]["final runs"] == "2/2" and watch.rows()[0]["mean test"] == "50.00%"


def test_many_may_write_the_tables_at_once(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path)
    worker(folder, FakeTraining()).work()
    tuned(folder, plan)
    expected = {path: path.read_text() for path in (folder.tuned, folder.summary, folder.table)}
    gate, torn = threading.Barrier(4), []

    def go() -> None:
        search = Search(folder.storage, plan.study)
        gate.wait()
        for _ in range(10):
            write_tables(folder, plan, search)
            torn.extend(path for path, text in expected.items() if path.read_text() != text)
            folder.prepare(study())

    threads = [threading.Thread(target=go) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert torn == []
    names = {path.name for path in folder.root.iterdir()}
    assert not [name for name in names if name.startswith(".") or name.endswith(".partial")]

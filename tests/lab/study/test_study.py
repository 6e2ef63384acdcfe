"""Whole studies: real training, real processes, kills and Ctrl-C."""

import dataclasses
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conadv.cli import main
from conadv.errors import Interrupted, StudyError
from conadv.lab.report import gather
from conadv.lab.report.content import content as report_content
from conadv.lab.study import Plan, StudyFolder, load_study, make_plan, run_study
from conadv.lab.study.__main__ import REPLACE_ME
from conadv.lab.study.outcomes import read_outcomes
from conadv.lab.study.search import Search
from conadv.lab.study.status import Watch
from conadv.lab.study.supervisor import Supervisor, View
from conadv.lab.study.tables import write_tables
from conadv.lab.study.worker import Worker
from conadv.trainer.input.resident_splits import ResidentSplits
from conadv.trainer.recipe import load_recipe
from conadv.trainer.run.lock.claims import Claims
from conadv.trainer.run.result import Result
from conadv.trainer.start import train
from support.studies import TINY_IMAGES, prepared, study

QUIET = Console(quiet=True)
STEPS = 150
LONG = {**TINY_IMAGES, "train.steps": STEPS, "checkpoint.every_steps": 10}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def steps(run: Path) -> list[int]:
    """Every step that was taken, as often as it counts."""
    return [json.loads(line)["step"] for line in (run / "timing.jsonl").read_text().splitlines()]


def alone(**changes: Any) -> Any:
    """One method, no trials, one long run."""
    methods = {"recycled": {"settings": {"method.schedule": "recycled"}}}
    return study(settings=LONG, methods=methods, tuning__trials=0, final__seeds=[0], **changes)


def start(folder: StudyFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "conadv.lab.study", str(folder.root)])


def test_a_real_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plan = prepared(tmp_path)
    reads: list[None] = []
    read = ResidentSplits.test

    def counted(self: ResidentSplits) -> Any:
        reads.append(None)
        return read(self)

    monkeypatch.setattr(ResidentSplits, "test", counted)
    per_run: dict[str, int] = {}

    def make(recipe: Any, out: Path, **options: Any) -> Result:
        before = len(reads)
        result = train(recipe, out, **options)
        per_run[f"{out.parent.name}/{out.name}"] = len(reads) - before
        return result

    Worker(folder.root, console=QUIET, make=make).work()
    # Once for plain accuracy, once under attack: and only in final runs.
    assert per_run == {t.name: 2 if t.kind == "final" else 0 for t in plan.tasks}
    found = read_outcomes(folder.tasks, [task.name for task in plan.tasks])
    assert {o.status for o in found.values()} == {"finished"}
    for task in plan.tasks:
        run = folder.runs / task.name
        result = json.loads((run / "result.json").read_text())
        assert result == found[task.name].result
        is_trial = task.kind == "trial"
        tested = [
            k for k, v in result.items() if k.startswith(("test", "robust")) and v is not None
        ]
        assert (tested == []) == is_trial and (result["val_accuracy"] is None) != is_trial
        assert (run / "pictures.npz").exists() != is_trial
        assert (run / "checkpoints").exists() != is_trial
        environment = json.loads((run / "environment.json").read_text())
        assert environment["command"] == found[task.name].command
    same = found["recycled-b16/seed-1"]
    _, _, recipe, *overrides, _, _ = shlex.split(same.command)
    again = train(load_recipe(recipe, overrides), tmp_path / "again", console=QUIET)
    kept = json.loads(json.dumps(dataclasses.asdict(again)))  # an outcome is a file
    assert {**kept, "step_seconds_median": None} == {
        **same.result,
        "step_seconds_median": None,
    }
    finals = [task for task in plan.tasks if task.kind == "final"]
    write_tables(folder, plan, Search(folder.storage, plan.study))
    page = report_content(gather([folder.root]))
    assert [run.name for run in page.runs] == [task.name for task in finals]
    assert {run.status for run in page.runs} == {"finished"}
    assert [run.command for run in page.runs] == [found[task.name].command for task in finals]
    assert len(page.tuned) == len(plan.cells)
    assert not any("goes on" in note for note in page.findings.caveats)


@pytest.mark.slow
def test_a_kill_ctrl_c_and_nothing_is_lost(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path, alone())
    (task,) = plan.tasks
    run = folder.runs / task.name
    command = [sys.executable, "-m", "conadv", "study", str(folder.root)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: lines(run / "timing.jsonl") > 20)
    owner = json.loads((folder.tasks / task.name / "claim-0.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)  # the worker; it is replaced, and the new one goes on
    until(lambda: "resumed" in (run / "environment.json").read_text())
    until(lambda: lines(run / "timing.jsonl") > 40)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "worker 0 ended with signal 9; a new one goes on" in said
    assert f"to go on: conadv study {folder.root}" in said
    stopped = json.loads((run / "result.json").read_text())
    assert stopped["status"] == "interrupted" and 40 <= stopped["steps"] < STEPS
    Worker(folder.root, console=QUIET).work()
    claim = Claims.newest(folder.tasks / task.name)
    assert claim is not None and claim.generation == 2
    assert Claims(folder.tasks, 60).deaths(claim) == 1  # the interrupted one gave it back
    train(plan.make_recipe(task), tmp_path / "unbroken", console=QUIET)
    assert (run / "metrics.jsonl").read_text() == (tmp_path / "unbroken/metrics.jsonl").read_text()
    assert steps(run) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    given = study(settings={**LONG, "train.steps": 25})
    folder, plan = prepared(tmp_path, given)
    first, second = start(folder), start(folder)
    until(lambda: len([*folder.tasks.glob("*/*/outcome.json")]) >= 2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert second.wait(120) == 0  # it has done the rest, the killed one's run too
    found = read_outcomes(folder.tasks, [task.name for task in plan.tasks])
    assert len(found) == len(plan.tasks) and {o.status for o in found.values()} == {"finished"}
    for task in plan.tasks:
        assert steps(folder.runs / task.name) == list(range(1, 26))


# -- the supervisor, with workers that are small scripts ---------------------------------------


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "worker.py"
    path.write_text(
        "import json, os, signal, sys, time\nfrom pathlib import Path\n"
        "root = Path(sys.argv[1]); tasks = root / 'tasks'\n"
        "names = sorted(json.loads((root / 'names.json').read_text()))\n"
        "done = lambda n: (tasks / n / 'outcome.json').exists()\n"
        "def finish(n):\n"
        "    (tasks / n).mkdir(parents=True, exist_ok=True)\n"
        "    outcome = json.loads((root / 'outcome.json').read_text())\n"
        "    (tasks / n / 'part').write_text(json.dumps({**outcome, 'task': n}))\n"
        "    (tasks / n / 'part').rename(tasks / n / 'outcome.json')\n" + text
    )
    return [sys.executable, str(path)]


def supervised(tmp_path: Path, text: str, workers: int = 1) -> tuple[StudyFolder, Plan, Supervisor]:
    folder, plan = prepared(tmp_path)
    (folder.root / "names.json").write_text(json.dumps([task.name for task in plan.tasks]))
    values = {"kind": "trial", "method": "m", "batch": 16, "number": 0, "status": "finished"}
    rest = {"message": None, "folder": "", "command": "", "values": {}, "seconds": 0}
    outcome = {**values, **rest, "worker": "", "result": {}}
    (folder.root / "outcome.json").write_text(json.dumps(outcome))
    own = Supervisor(folder, plan, QUIET, workers, script(tmp_path, text))
    return folder, plan, own


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)", f"sys.exit({REPLACE_ME})"]
)
def test_workers_that_die_are_replaced(tmp_path: Path, end: str) -> None:
    each = "finish(next(n for n in names if not done(n)))\n"  # one run, then it is gone
    folder, plan, own = supervised(tmp_path, each + end)
    own.run()
    assert len(read_outcomes(folder.tasks, [t.name for t in plan.tasks])) == len(plan.tasks)


def test_workers_that_get_nowhere_end_the_study(tmp_path: Path) -> None:
    _, _, own = supervised(tmp_path, "print('no such device', file=sys.stderr); sys.exit(3)")
    with pytest.raises(StudyError, match="3 workers ended without getting to a run(.|\n)*no such"):
        own.run()


def test_what_no_worker_can_get_over_ends_the_study(tmp_path: Path) -> None:
    _, _, own = supervised(tmp_path, "print('error: no data', file=sys.stderr); sys.exit(2)")
    with pytest.raises(StudyError, match="worker 0 cannot go on:\nerror: no data"):
        own.run()


def test_a_stop_reaches_every_worker(tmp_path: Path) -> None:
    text = (
        "signal.signal(signal.SIGTERM, lambda *_: (finish(names[0]), sys.exit(130)))\n"
        "(root / f'ready-{os.getpid()}').touch()\n"
        "if len([*root.glob('ready-*')]) == 2: os.kill(int(sys.argv[3]), signal.SIGINT)\n"
        "time.sleep(60)"
    )
    folder, _, own = supervised(tmp_path, text, workers=2)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped by SIGINT with .* of 8 runs done"):
        own.run()
    assert time.monotonic() - began < 50
    assert len([*folder.root.glob("ready-*")]) == 2 and folder.tuned.exists()


def test_cores_and_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, own = supervised(tmp_path, "", workers=3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    found = [own._environment(number) for number in range(3)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["4", "6", "4"]
    assert {e["OMP_NUM_THREADS"] for e in found} == {"2"}
    own.workers = 1
    assert own._environment(0)["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_the_bar_of_a_terminal(tmp_path: Path) -> None:
    folder, plan, _ = supervised(tmp_path, "")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    watch = Watch(folder, plan)
    claim = Claims(folder.tasks, 60).take("vanilla-b16/trial-000")
    assert claim is not None
    with View(console, watch) as view:
        view.update(watch.look())
        view._progress.refresh()  # it draws twice per second
        outcome = json.loads((folder.root / "outcome.json").read_text())
        path = claim.folder / "outcome.json"
        path.write_text(json.dumps({**outcome, "task": "vanilla-b16/trial-000"}))
        view.update(watch.look())
    shown = file.getvalue()
    assert "0/8 runs" in shown and "vanilla-b16/trial-000 0%" in shown
    assert "1/8 runs" in shown and "vanilla-b16/trial-000 finished in 0 s" in shown


def test_the_time_left_counts_only_what_was_made_since_the_start(tmp_path: Path) -> None:
    folder, plan, _ = supervised(tmp_path, "")
    outcome = json.loads((folder.root / "outcome.json").read_text())

    def end(name: str) -> None:
        path = folder.tasks / name / "outcome.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**outcome, "task": name}))

    end("vanilla-b16/trial-000")
    end("vanilla-b16/trial-001")
    stopped = folder.runs / "recycled-b16/seed-0"
    stopped.mkdir(parents=True)
    (stopped / "timing.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    file = io.StringIO()
    watch = Watch(folder, plan)
    with View(Console(file=file, width=120), watch) as view:
        end("vanilla-b16/seed-0")
        view._began -= 100
        view.update(watch.look())
    # Of 4 x 48 + 4 x 96 there were 2 x 48 and 64 before, 48 came in 100 s, 368 are to come.
    assert "3/8 runs, about 12.8 min left" in file.getvalue()


# -- the command -------------------------------------------------------------------------------


def test_dry_run_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "smoke", "--dry-run", "--images-per-second", "100"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs of 2 cells: 4 trials, 4 final runs: about" in shown
    assert "at the speed given" in shown and "evaluation.test=false" in shown
    assert main(["study", "smoke", "--status", "--out", str(tmp_path / "none")]) == 2
    assert "is no study folder" in capsys.readouterr().err
    folder = StudyFolder(tmp_path / "study")
    folder.prepare(load_study("smoke"))
    assert Claims(folder.tasks, 60).take("vanilla-b32/trial-000") is not None
    assert main(["study", str(folder.root), "--status"]) == 0
    shown = capsys.readouterr().out
    assert "0 of 8 runs have ended, 0% of the compute" in shown
    assert f"at work: vanilla-b32/trial-000 0%, process {os.getpid()} on" in shown


def test_dry_run_without_trials(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "fashion-corners", "--dry-run", "--images-per-second", "100"]) == 0
    shown = capsys.readouterr().out
    assert "144 runs of 24 cells: 0 trials, 144 final runs" in shown
    assert "as vanilla" not in shown  # there is no other cell that its settings come from


def test_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is what bash and sbatch can read, and its task is this command."""
    out = tmp_path / "a study"
    monkeypatch.setenv("PATH", os.defpath)
    asked = ["study", "smoke", "--out", str(out), "--launcher", "slurm", "--jobs", "3"]
    assert main([*asked, "--slurm", "partition=gpu", "--slurm", "time=1:00:00"]) == 0
    assert "submit it with: sbatch" in capsys.readouterr().out
    text = (out / "study.sbatch").read_text()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert options["array"] == "0-2" and options["partition"] == "gpu"
    assert options["time"] == "1:00:00" and options["signal"] == "TERM@120"
    for name, body in {
        "srun": 'echo "$@" > "$WHERE/ran"\nexit "${CODE:-0}"',
        "scontrol": 'echo "$@" > "$WHERE/requeued"',
        "sbatch": "echo Submitted batch job 7",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    job = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "WHERE": str(tmp_path)}
    environment = {**os.environ, **job, "PATH": path}
    done = subprocess.run(["bash", str(out / "study.sbatch")], env=environment, check=False)
    assert done.returncode == 0 and not (tmp_path / "requeued").exists()
    said = (tmp_path / "ran").read_text().strip()
    assert said.endswith(f"-m conadv study {out} --workers 1")
    environment["CODE"] = "130"  # preempted: a checkpoint is written
    done = subprocess.run(["bash", str(out / "study.sbatch")], env=environment, check=False)
    assert done.returncode == 130
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7_2"]
    monkeypatch.setenv("PATH", path)
    assert main(asked) == 0
    assert "Submitted batch job 7" in capsys.readouterr().out
    assert main([*asked, "--slurm", "array=0-9"]) == 2
    assert "the script sets array itself" in capsys.readouterr().err


def test_run_study_checks_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="takes 100 fresh images"):
        run_study(study(batches=[100]), tmp_path / "study", console=QUIET)
    assert not (tmp_path / "study").exists()


def test_plans_need_no_folder() -> None:
    assert len(make_plan(load_study("smoke")).tasks) == 8

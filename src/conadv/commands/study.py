"""``conadv study``: methods x batches x seeds, tuned alike, on any number of machines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conadv._words import duration
from conadv.commands._show import quote, table

if TYPE_CHECKING:
    from conadv.lab.study import Plan, Study, StudyFolder
    from conadv.lab.study.plan import Cell


def study(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="Name of a shipped study, YAML file, or its folder."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Study folder.", show_default="runs/NAME")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and the hours they would take.")
    ] = False,
    images_per_second: Annotated[
        float | None,
        typer.Option(help="With --dry-run: of ordinary training.", show_default="measured here"),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show how far it is.")] = False,
    launcher: Annotated[
        str, typer.Option(help="local, or slurm: an array of jobs that share the folder.")
    ] = "local",
    jobs: Annotated[int, typer.Option(min=1, help="With --launcher slurm: tasks at once.")] = 4,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of sbatch, such as partition=gpu."),
    ] = None,
) -> None:
    """Tune and train methods x batches x seeds.

    Every method is tuned at every batch with the same budget, then trained over several seeds.
    Ctrl-C stops it, the same command goes on. The same command on another machine that sees the
    folder works at the same study.
    """
    from conadv.lab.study import StudyFolder, load_study

    if launcher not in ("local", "slurm"):
        raise typer.BadParameter(f"--launcher {launcher}: give local or slurm.")
    given = load_study(study)
    own = Path(study)
    folder = StudyFolder(out or (own if own.is_dir() else Path("runs") / given.name))
    if status:
        _status(folder)
    elif dry_run:
        _dry_run(given, images_per_second, workers)
    elif launcher == "slurm":
        _slurm(given, folder, jobs, workers, slurm or [])
    else:
        _run(given, folder, workers)


def _run(given: Study, folder: StudyFolder, workers: int) -> None:
    from rich.console import Console

    from conadv.errors import doing
    from conadv.lab.study import run_study

    def begin(folder: StudyFolder, plan: Plan) -> None:
        typer.echo(f"{_counts(plan)}; folder: {folder.root}", err=True)

    console = Console(stderr=True)
    with doing(f"working at the study {given.name} in {folder.root}"):
        run_study(given, folder.root, workers=workers, console=console, prepared=begin)
    _status(folder)
    typer.echo(f"\ntuned settings: {folder.tuned}\nevery final run: {folder.table}")


def _status(folder: StudyFolder) -> None:
    given = folder.require_study()  # before the imports that take seconds
    from conadv.lab.study.plan import make_plan
    from conadv.lab.study.status import Watch
    from conadv.lab.study.supervisor import described

    plan = make_plan(given, folder.root)
    watch = Watch(folder, plan)
    watch.look()
    working = watch.working()
    table(watch.rows())
    share = (watch.compute + watch.partial()) / watch.total
    seconds = sum(outcome.seconds for outcome in watch.outcomes.values())
    typer.echo(
        f"\n{len(watch.outcomes)} of {len(plan.tasks)} runs have ended, {share:.0%} of the "
        f"compute; {duration(seconds)} of training"
    )
    _verdicts(folder)
    for one in working:
        typer.echo(f"  at work: {one.task} {one.share:.0%}, process {one.pid} on {one.host}")
    for outcome in watch.outcomes.values():
        if outcome.status != "finished":
            typer.echo(f"  {described(outcome)}")


def _verdicts(folder: StudyFolder) -> None:
    """What the final runs say about each hypothesis, as far as they have come."""
    import json

    if not folder.summary.is_file():
        return
    for one in json.loads(folder.summary.read_text(encoding="utf-8")).get("hypotheses", ()):
        low, high = one["interval"] or (float("nan"),) * 2
        text = f"hypothesis {one['name']}: {one['verdict']}, {100 * one['value']:+.2f} points"
        text += f" [{100 * low:.2f}, {100 * high:.2f}], {one['seeds']} seeds"
        typer.echo(text + (f" (exploratory: {one['exploratory']})" if one["exploratory"] else ""))


def _dry_run(given: Study, images_per_second: float | None, workers: int) -> None:
    from conadv.lab.evidence import POWER
    from conadv.lab.study.cost import estimate
    from conadv.lab.study.hypotheses.judge import visible_effects
    from conadv.lab.study.plan import make_plan

    plan = make_plan(given)
    costs = estimate(plan, images_per_second)
    names = {cell.name: cell for cell in plan.cells}
    rows = [
        {
            "cell": cost.cell,
            "tuned": ", ".join(cell.space) or _settings_of(cell),
            "trials": cost.trials,
            "of": duration(cost.trial_seconds) if cost.trials else "-",
            "final runs": cost.finals,
            "of ": duration(cost.final_seconds),
            "together": duration(cost.seconds),
        }
        for cost in costs
        for cell in [names[cost.cell]]
    ]
    table(rows, f"{given.name}: a dry run, nothing is trained or written")
    seconds = sum(cost.seconds for cost in costs)
    how = "measured on this machine" if images_per_second is None else "at the speed given"
    typer.echo(f"\n{_counts(plan)}: about {duration(seconds)} on one worker, {how}")
    if workers > 1:
        shared = duration(seconds / workers)
        typer.echo(f"on {workers} workers, if they do not slow each other: {shared}")
    for name, effect in visible_effects(given).items():
        seen = f"{100 * effect:.2f} points are seen with a chance of {POWER:.0%}"
        typer.echo(f"hypothesis {name}: {seen}")
    typer.echo("an example of each kind of run:")
    first = {task.kind: task for task in reversed(plan.tasks)}
    for task in first.values():
        typer.echo(f"  {plan.command(task, {}, Path('runs') / task.name)}")


def _settings_of(cell: Cell) -> str:
    return "-" if cell.tuned_as == cell.name else f"as {cell.tuned_as}"


def _slurm(given: Study, folder: StudyFolder, jobs: int, workers: int, options: list[str]) -> None:
    from conadv.lab.study.plan import make_plan
    from conadv.lab.study.slurm import parse_options, submit, write_script

    make_plan(given)
    folder.prepare(given)
    script = write_script(folder, jobs, workers, parse_options(options))
    answer = submit(script)
    typer.echo(f"script: {script}")
    typer.echo(answer or f"there is no sbatch here; submit it with: sbatch {quote(script)}")


def _counts(plan: Plan) -> str:
    kinds = Counter(task.kind for task in plan.tasks)
    confirmed = f"{kinds['confirm']} confirmations, " if kinds["confirm"] else ""
    return (
        f"{len(plan.tasks)} runs of {len(plan.cells)} cells: {kinds['trial']} trials, "
        f"{confirmed}{kinds['final']} final runs"
    )

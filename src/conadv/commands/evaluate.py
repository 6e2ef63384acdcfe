"""``conadv evaluate``: accuracy and robustness of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from conadv._files import write_json
from conadv.commands._options import Branch, Checkpoint, Device, Json, Overrides, Run, check_run
from conadv.commands._show import facts, percent, say, table


def evaluate(
    run: Run,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "last",
    branch: Branch = None,
    epsilon: Annotated[
        str | None,
        typer.Option(help="Radius of the attacks, such as 4/255.", show_default="recipe's"),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of PGD; 0: FGSM alone.")] = 10,
    restarts: Annotated[int, typer.Option(min=1, help="Restarts of PGD.")] = 1,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Attack so many test images.", show_default="recipe's"),
    ] = None,
    device: Device = None,
    test_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Instead, score one of ImageNet's test sets: validation (with ReaL), V2, A, R, "
            "Sketch, C. Repeatable.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="With --test-set: decoding processes.")] = 4,
    classes: Annotated[
        bool, typer.Option("--classes", help="Also show the accuracy of each class.")
    ] = False,
    json: Json = None,
) -> None:
    """Measure a run's accuracy, and its robustness to FGSM and PGD."""
    radius = None if epsilon is None else _radius(epsilon)
    check_run(run, overrides or (), branch)
    if test_set:
        _evaluate_sets(run, test_set, checkpoint, branch, device, workers, json)
        return
    from conadv.trainer.evaluation.evaluate import evaluate_run

    found = evaluate_run(
        run,
        checkpoint=checkpoint,
        branch=branch,
        epsilon=radius,
        steps=steps,
        restarts=restarts,
        images=images,
        device=device,
        overrides=overrides or (),
    )
    under = f"{found['norm']} {found['epsilon'] * 255:.3g}/255"
    rows = {"clean": f"{percent(found['test_accuracy'])}, loss {found['test_loss']:.4f}"}
    if found["top5_accuracy"] is not None:
        rows["top 5"] = percent(found["top5_accuracy"])
    rows["FGSM"] = f"{percent(found['fgsm_accuracy'])}, {under}"
    if found["pgd_accuracy"] is not None:
        starts = found["pgd_restarts"]
        tries = f", the worst of {starts} starts" if starts > 1 else ""
        rows[f"PGD-{found['pgd_steps']}"] = f"{percent(found['pgd_accuracy'])}, {under}{tries}"
    attacked = f"attacked: {found['attacked_images']:,} test images"
    say(f"step {found['step']}, branch {found['branch']}; {attacked}")
    facts(rows)
    if classes:
        _show_classes(found)
    if json is not None:
        write_json(json, found)


def _show_classes(found: dict[str, Any]) -> None:
    """The accuracy of each class, the worst first, and what it is mostly taken for instead."""
    names, matrix = list(found["class_accuracy"]), found["confusion"]
    rows = []
    for number, (name, accuracy) in enumerate(found["class_accuracy"].items()):
        row = {"class": name, "accuracy": percent(accuracy)}
        if matrix is not None:
            others = [0 if n == number else count for n, count in enumerate(matrix[number])]
            most = max(others)
            row["mostly taken for"] = f"{names[others.index(most)]} ({most})" if most else "-"
        rows.append((1.0 if accuracy is None else accuracy, row))
    say("")
    table([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def _evaluate_sets(
    run: Path,
    sets: list[str],
    checkpoint: str,
    branch: str | None,
    device: str | None,
    workers: int,
    json: Path | None,
) -> None:
    from conadv.lab.report.imagenet import imagenet_markdown
    from conadv.trainer.evaluation.imagenet_sets import evaluate_sets

    found = evaluate_sets(
        run, sets, checkpoint=checkpoint, branch=branch, device=device, workers=workers
    )
    typer.echo(imagenet_markdown([found]), nl=False)
    if json is not None:
        write_json(json, found)


def _radius(text: str) -> float:
    """A radius in pixel units from "4/255" or "0.0157"."""
    from conadv.trainer.recipe import load_recipe

    # A recipe's own reading of the field, with its checks and its messages.
    return load_recipe("smoke", [f"attack.epsilon={text}"]).attack.epsilon

"""``conadv analyse``: what a run has learnt, beyond its test accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conadv.commands._options import Branch, Checkpoint, Device, check_run, check_split
from conadv.commands._show import percent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def analyse(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE...]",
            help="Run folders, and changes that leave the weights alone, such as data.root=DIR.",
        ),
    ],
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Of gap, sharpness, landscape, robustness, corruptions, staleness, gradients.",
            show_default="all",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also what is in analysis.json already.")
    ] = False,
    checkpoint: Checkpoint = "last",
    branch: Branch = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each analysis but the gap.")] = 1000,
    split: Annotated[
        str,
        typer.Option(
            help="Images of sharpness and landscape: train or test.", callback=check_split
        ),
    ] = "train",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images per pass; bounds memory.", show_default="recipe's"),
    ] = None,
    eigenvalues: Annotated[int, typer.Option(min=1, help="Largest ones of the Hessian.")] = 5,
    pgd_steps: Annotated[int, typer.Option(min=0, help="Steps of PGD; 0: FGSM alone.")] = 10,
    plane_points: Annotated[
        int, typer.Option(min=0, help="Points per axis of the 2-D landscape, odd; 0: none.")
    ] = 11,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: Device = None,
) -> None:
    """Measure the gap, sharpness, landscape and robustness of runs.

    Also corruption robustness, and how far old perturbations and gradients agree with fresh ones.
    Figures go to analysis.json in
    each run folder, each when it is done; the same command again does what is missing.
    """
    overrides = [given for given in runs if "=" in given and not Path(given).exists()]
    folders = [Path(given) for given in runs if given not in overrides]
    if not folders:
        raise typer.BadParameter("name at least one run folder.")
    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names or () if name not in _LINES]
    if unknown or names == []:
        raise typer.BadParameter(
            f"analysis {', '.join(unknown) or 'none'}: there are {', '.join(_LINES)}."
        )
    if len(folders) == 1:
        check_run(folders[0], overrides, branch)
    from rich.console import Console

    from conadv.errors import ConadvError
    from conadv.lab.analysis.run.analyse import analyse_run
    from conadv.lab.analysis.run.analyses import AnalysisSettings

    settings = AnalysisSettings(
        images=images,
        batch=batch,
        split=split,
        branch=branch,
        seed=seed,
        eigenvalues=eigenvalues,
        plane_points=plane_points,
        pgd_steps=pgd_steps,
    )
    failed: list[str] = []
    for run in folders:
        try:
            found = analyse_run(
                run,
                only=names,
                again=again,
                checkpoint=checkpoint,
                device=device,
                settings=settings,
                console=Console(stderr=True),
                overrides=overrides,
            )
        except ConadvError as error:
            if len(folders) == 1:
                raise
            typer.echo(f"error: {run}: {error}", err=True)  # the others are analysed all the same
            failed.append(str(run))
            continue
        typer.echo(f"{run}, step {_steps(found)}")
        for name, entry in found["analyses"].items():
            for line in _LINES[name](entry["result"]):
                typer.echo(f"  {name:<12}{line}")
    if failed:
        raise ConadvError(f"{len(failed)} of {len(folders)} runs failed: {', '.join(failed)}")


def _steps(found: Mapping[str, Any]) -> str:
    return ", ".join(str(s) for s in sorted({e["step"] for e in found["analyses"].values()}))


# -- a line or two for each analysis -----------------------------------------------------------


def _gap(result: Mapping[str, Any]) -> list[str]:
    train, test = result["train"], result["test"]
    return [
        f"accuracy {percent(train['accuracy'])} on training images, {percent(test['accuracy'])} "
        f"on test images: gap {percent(result['accuracy_gap'])}",
        f"loss {train['loss']:.4f} and {test['loss']:.4f}: gap {result['loss_gap']:.4f}",
    ]


def _sharpness(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if hessian := result["hessian"]:
        values = " ".join(f"{value:.4g}" for value in hessian["eigenvalues"]) or "none converged"
        spread = hessian["trace_error"]
        more = "" if spread is None else f" ± {spread:.2g}"
        lines.append(f"eigenvalues {values}; trace {hessian['trace']:.4g}{more}")
    sam = result["sam"]
    points = "  ".join(f"{p['radius']:g}: {_number(p['sharpness'])}" for p in sam["points"])
    return [*lines, f"SAM at radius  {points}"]


def _landscape(result: Mapping[str, Any]) -> list[str]:
    lines = result["lines"]
    low = min(loss for line in lines for loss in line["losses"] if loss is not None)
    ends = [line["losses"][i] for line in lines for i in (0, -1)]
    finite = [loss for loss in ends if loss is not None]
    reach = lines[0]["positions"][-1]
    end = f"{sum(finite) / len(finite):.4g}" if finite else "not finite"
    return [f"{len(lines)} lines: lowest loss {low:.4g}, mean at ±{reach:g} {end}"]


def _robustness(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for curve in result["curves"]:
        name = "FGSM" if curve["attack"] == "fgsm" else f"PGD-{curve['steps']}"
        cells = "  ".join(
            f"{epsilon * 255:g}/255: {accuracy:.1%}"
            for epsilon, accuracy in zip(curve["epsilons"], curve["accuracies"], strict=True)
        )
        rows.append(f"{curve['branch']} {name}  0: {curve['clean_accuracy']:.1%}  {cells}")
    return rows


def _corruptions(result: Mapping[str, Any]) -> list[str]:
    means = "  ".join(f"{name} {value:.1%}" for name, value in result["means"].items())
    return [f"clean {result['clean']:.1%}, mean {result['mean']:.1%}", means]


def _staleness(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"tau {row['tau']} (steps {row['from_step']} to {row['to_step']}, LR "
        f"{_number(row['learning_rate'])}): cosine {row['cosine']:.3f} (chance "
        f"{row['chance']:.3f}), same sign {row['same_sign']:.1%}"
        for row in result["pairs"]
    ]
    if logged := result["logged"]:
        lines.append(f"logged: mean {logged['mean']:.3f}, lowest {logged['lowest']:.3f}")
    return lines or ["nothing to compare: one checkpoint was kept"]


def _gradients(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"step {row['step']}, LR {_number(row['learning_rate'])}, moved {row['moved']:.1%}: one "
        f"step old {_cosine(row['whole'])}, shared {_cosine(row['shared'])}, own "
        f"{_cosine(row['own'])}, other images {_cosine(row['other'])}"
        for row in result["steps"]
    ]
    return [*lines, result["verdict"]]


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


_LINES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "gap": _gap,
    "sharpness": _sharpness,
    "landscape": _landscape,
    "robustness": _robustness,
    "corruptions": _corruptions,
    "staleness": _staleness,
    "gradients": _gradients,
}

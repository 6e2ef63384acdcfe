"""``conadv lr-find``: a learning-rate range test."""

from pathlib import Path
from typing import Annotated

import typer

from conadv.commands._options import Changes, RecipeName
from conadv.commands._show import quote, say

INTERRUPTED = 130


def lr_find(
    recipe: RecipeName,
    overrides: Changes = None,
    lowest: Annotated[
        float | None,
        typer.Option(help="Rate of the first step.", show_default="recipe's / 10,000"),
    ] = None,
    highest: Annotated[
        float | None, typer.Option(help="Rate of the last step.", show_default="recipe's x 100")
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Steps at most.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME",
            help="Files to write, without .csv and .svg.",
            show_default="NAME-lr",
        ),
    ] = None,
) -> None:
    """Find a learning rate by a range test.

    A fresh network is trained at rates that rise from step to step, and its loss watched.

    Writes a table and a picture and suggests a rate: where the smoothed loss falls fastest. It
    ends where the loss explodes, or with Ctrl-C; nothing else is kept, and no run is touched.
    """
    from conadv.trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])  # before the imports that take seconds
    from conadv._files import write_text
    from conadv.lab.report.charts.lr_range import picture
    from conadv.trainer.probe.lr_find import lr_find as find

    found = find(loaded, lowest, highest, steps)
    if not found.points:
        raise typer.Exit(INTERRUPTED)
    name = out or Path(f"{loaded.name}-lr")
    points = [(p.learning_rate, p.loss, p.smoothed) for p in found.points]
    named = {"steepest fall": found.steepest, "lowest": found.lowest}
    drawn = picture(points, named, loaded.name)
    for suffix, text in ((".csv", found.table()), (".svg", drawn)):
        file = name.with_name(name.name + suffix)
        write_text(file, text)
        say(f"written: {file}")
    last = found.points[-1]
    how = "was stopped" if found.stopped else "ended"
    say(f"{loaded.name}: {how} at {last.learning_rate:.3g} after {last.step} steps")
    if found.suggested_lr is None:
        say("The loss fell nowhere: try other rates with --lowest and --highest, or more --steps.")
    else:
        assert found.steepest is not None and found.lowest is not None
        say(
            f"The smoothed loss falls fastest at {found.steepest:.2g} and is lowest at "
            f"{found.lowest:.2g}. Long runs often bear no more than a tenth of the latter.\n"
            f"suggested: conadv train {quote(Path(recipe))} optimizer.lr={found.suggested_lr:g}"
        )
    if found.stopped:
        raise typer.Exit(INTERRUPTED)

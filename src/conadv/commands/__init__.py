"""The commands, one per file. Heavy imports are inside of them, so that help is quick."""

from typing import Annotated

import typer

from conadv.commands import (
    analyse,
    bench,
    data,
    evaluate,
    export,
    lr_find,
    models,
    plan,
    quickstart,
    recipes,
    report,
    study,
    train,
)


def _version(asked: bool) -> None:
    if asked:
        import conadv

        typer.echo(f"conadv {conadv.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="conadv",
    help="Concurrent adversarial learning for large-batch training.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Concurrent adversarial learning for large-batch training."""


app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("analyse")(analyse.analyse)
app.command("export")(export.export)
app.command("study")(study.study)
app.command("report")(report.report)
app.command("lr-find")(lr_find.lr_find)
app.command("plan")(plan.plan)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")

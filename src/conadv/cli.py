"""The command line: ``conadv train | evaluate | export | plan | recipes | bench | data | ...``.

Each command is a file in `conadv.commands`. What a user can act on is printed as one message
without a traceback; the exit code is 2 for anything wrong with what was asked, 130 after an
interruption. ``CONADV_TRACEBACK=1`` shows the traceback all the same.
"""

import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conadv._words import fitted, width_of
from conadv.errors import ConadvError, Interrupted, in_brackets, in_words, install_command

USAGE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows ``conadv``; None takes the process's own.

    Returns:
        The exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except BrokenPipeError:
        # The reader of the pipe has seen enough; Python must not complain while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message, code = describe(error, f"running conadv {shlex.join(given)}")
        if getattr(error, "told", False):
            return code
        if message is None or os.environ.get("CONADV_TRACEBACK") == "1":
            raise
        if _speaks_for_all(error):
            print(fitted(message, width_of(sys.stderr)), file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    from conadv.commands import app

    outcome = app(arguments, standalone_mode=False, prog_name="conadv")
    if outcome == INTERRUPTED:  # typer has caught the Ctrl-C
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


def _speaks_for_all(error: BaseException) -> bool:
    """Whether this process is the one that tells the user.

    What every rank of a run raises alike is told by rank 0; what one rank alone knows, by that.
    """
    return os.environ.get("RANK", "0") == "0" or not getattr(error, "on_every_rank", False)


def describe(error: BaseException, command: str = "") -> tuple[str | None, int]:
    """The message for an error and the exit code; None where the traceback is the message.

    Args:
        error: what a command has raised.
        command: what was being done, where nobody knew better.
    """
    if isinstance(error, Interrupted):
        return str(error), INTERRUPTED
    if type(error).__name__ == "Abort":  # typer's word for Ctrl-C
        return "interrupted", INTERRUPTED
    if isinstance(error, ModuleNotFoundError):
        return _missing(error), USAGE
    if isinstance(error, ConadvError) or (isinstance(error, ValueError) and _raised_here(error)):
        return f"error: {error}", USAGE
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror}{in_brackets(error, command)}", USAGE
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"error: out of memory: {error}{in_brackets(error, command)}\nLower "
            "batch.micro_batch: the global batch stays, in more and smaller forward passes.",
            USAGE,
        )
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message()), USAGE  # type: ignore[attr-defined]
    if hasattr(error, "format_message"):  # typer's usage errors
        return f"error: {error.format_message()}{_help(error)}", USAGE
    return _from_elsewhere(error, command), 1


def _from_elsewhere(error: BaseException, command: str) -> str | None:
    """Where an error of another library or of one's own code is, and what was being done.

    None for a bug of this package, which a traceback explains.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or (_inside(frames[-1]) and not _of_an_extension(error)):
        return None
    return (
        f"error: {in_words(error, command)}\nIt comes from {frames[-1].filename}, line "
        f"{frames[-1].lineno}; CONADV_TRACEBACK=1 before the command shows the way there."
    )


def _inside(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(Path(__file__).parent)


def _of_an_extension(error: BaseException) -> bool:
    """Whether compiled code raised the error, by its kind: such code leaves no frame."""
    home = type(error).__module__.partition(".")[0]
    known = isinstance(error, RuntimeError | MemoryError) or home not in ("builtins", "conadv")
    return known and not _raised_here(error)


def _raised_here(error: BaseException) -> bool:
    """Whether a ``raise`` of this package made the error, so that its message is for users.

    Argument checks of the library raise plain ValueErrors, as other libraries do.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    return _inside(frames[-1]) and (frames[-1].line or "").startswith("raise")


def _missing(error: ModuleNotFoundError) -> str | None:
    name = (error.name or "").partition(".")[0]
    if name in ("conadv", ""):
        return None
    others = {"jinja2": "report", "optuna": "study"}
    others |= dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx")
    extras = ["train", *([others[name]] if name in others else [])]
    return f"error: {name} is not installed, and this needs it. Type: {install_command(*extras)}"


def _help(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"\nHelp: {context.command_path} --help" if context is not None else ""


def __getattr__(name: str) -> Any:
    """``conadv.cli.app``, made on demand: without typer this file still imports."""
    if name == "app":
        from conadv.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

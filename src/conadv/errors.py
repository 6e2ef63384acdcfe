"""Errors that a user can act on.

Each message says what was given, what is allowed and what to do next. The command line prints
them without a traceback; a library user can catch :class:`ConadvError`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ConadvError(Exception):
    """Base of every error that conadv raises on purpose outside argument checks."""

    on_every_rank = False
    """Whether all processes of a run raise it together, so that one of them has to tell."""
    told = False
    """Whether the user has heard of it already, from this process or another one."""


class RecipeError(ConadvError, ValueError):
    """A recipe that does not exist, does not parse, or asks for the impossible."""


class DataError(ConadvError):
    """A data set that is missing, damaged or does not match its checksum."""


class CheckpointError(ConadvError):
    """A checkpoint that is truncated, foreign, unsafe to load, or of another recipe."""


class RunFolderError(ConadvError):
    """A run folder that holds another run, or lacks what the command needs."""


class RunHeldError(RunFolderError):
    """A run folder in which another process trains."""


class ExportError(ConadvError):
    """A network that a format cannot hold."""


class NonFiniteError(ConadvError):
    """The loss became NaN or infinite and the recipe says to stop."""


class DistributedError(ConadvError):
    """Processes of one run that cannot work together."""


class StudyError(ConadvError, ValueError):
    """A study that asks for the impossible, or a study folder that cannot be worked in."""


class Interrupted(ConadvError):
    """Training was asked to stop (Ctrl-C or SIGTERM) and has written a checkpoint."""


class PlanError(ConadvError, ValueError):
    """Hardware that is not known, or a number of devices that cannot carry the batch."""


_WHILE = "while "
_under_way: dict[int, tuple[str, ...]] = {}
"""What each thread is doing, from the inside out."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what is being done, to whoever reads of an error from elsewhere or of a stuck process.

    Other libraries, and code of one's own that a recipe names, raise what they like, and their
    words seldom say which part of a run they are about. The error stays what it is, so that a
    caller can catch it; :func:`in_words` and the command line tell what was noted on it.

    Args:
        what: as in ``making the optimizer (optimizer.name=lars)``.
    """
    thread = threading.get_ident()
    around = _under_way.get(thread, ())
    _under_way[thread] = (what, *around)
    try:
        yield
    except ConadvError:
        raise  # says it itself
    except Exception as error:
        if not what_was_done(error):
            error.add_note(_WHILE + activity(thread))
        raise
    finally:
        _under_way[thread] = around


def activity(thread: int) -> str:
    """What a thread is :func:`doing` now, from the inside out; empty if it has not said."""
    return ", ".join(_under_way.get(thread, ()))


def what_was_done(error: BaseException) -> str:
    """What :func:`doing` has noted, from the inside out; empty if nothing."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(_WHILE) for note in notes if note.startswith(_WHILE)), "")


def in_words(error: BaseException, otherwise: str = "") -> str:
    """Kind and message of an error, and what was being done; `otherwise` if nobody noted it."""
    return f"{type(error).__name__}: {error}{in_brackets(error, otherwise)}"


def in_brackets(error: BaseException, otherwise: str = "") -> str:
    """What was being done, to follow a message; `otherwise` if nobody noted it."""
    what = what_was_done(error) or otherwise
    return f" ({_WHILE}{what})" if what else ""


def install_command(*extras: str) -> str:
    """The command that installs conadv with `extras`, from where it came.

    An installation from a folder, a file or a repository says so in its ``direct_url.json`` (PEP
    610); without one it came from an index, which then knows the name.
    """
    wanted = f"[{','.join(extras)}]"
    origin = _origin()
    if origin is None:
        return f'pip install "conadv{wanted}"'
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    url = str(origin["url"])
    if "dir_info" in origin:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{url2pathname(urlsplit(url).path)}{wanted}"'
    vcs = origin.get("vcs_info")
    if vcs:
        revision = vcs.get("requested_revision")
        url = f"{vcs['vcs']}+{url}" + (f"@{revision}" if revision else "")
    return f'pip install "conadv{wanted} @ {url}"'


def _origin() -> dict[str, Any] | None:
    """What ``direct_url.json`` says; a checkout that is imported as it lies is such a folder."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("conadv").read_text("direct_url.json")
    except PackageNotFoundError:
        root = Path(__file__).resolve().parents[2]
        return {"url": root.as_uri(), "dir_info": {"editable": True}}
    return None if text is None else json.loads(text)

"""Words: times, lines that fit a terminal, names that somebody may have meant, things by name.

A registered thing has a word for a name; one's own is ``module:attribute``.
"""

import difflib
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import IO, Any, TypeVar, cast

T = TypeVar("T")
_COMMAND = re.compile(r"  (conadv|torchrun|tensorboard|\S*python\S*) ")
"""What a line begins with that is to be typed, not read."""
_INSIDE = "\0"
"""Stands for a space that no line is broken at."""


def duration(seconds: float) -> str:
    """A time in three digits, from microseconds to days: ``43 s``, ``12.5 min``, ``6.2 h``."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if unit == "days" else 1):
            return f"{seconds / size:.3g} {unit}"
    return "0 s" if seconds == 0 else f"{seconds * 1e6:.3g} us"


def width_of(stream: IO[str]) -> int | None:
    """Columns of the terminal behind a stream; None where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):  # a stand-in for a terminal, or a closed one
        return None


def fitted(text: str, width: int | None, further: str = "") -> str:
    """Break lines at spaces so that they fit; a word that is longer stays whole.

    Parts of an indented command end in a backslash: a shell takes them as one.

    Args:
        text: Any number of lines.
        width: Columns; None leaves the text as it is.
        further: What the second and later parts of any line begin with, after its indentation.
    """
    if width is None:
        return text
    return "\n".join(_broken(line, width, further) for line in text.split("\n"))


def _broken(line: str, width: int, further: str) -> str:
    if len(line) <= width:
        return line
    command = _COMMAND.match(line) is not None
    end = " \\" * command
    if command:  # what stands in quotes is one word to a shell
        line = re.sub("'[^']*'", lambda quoted: quoted[0].replace(" ", _INSIDE), line)
    text = line.lstrip()
    further += "  " * (command or text.startswith("- "))
    parts = textwrap.wrap(
        text,
        width - len(end),
        initial_indent=line[: -len(text)],
        subsequent_indent=line[: -len(text)] + further,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(parts).replace(_INSIDE, " ")


def nearest(word: str, words: Iterable[str], count: int = 3, alike: float = 0.6) -> list[str]:
    """The words most like `word`, best first, whatever their case; none if nothing is like it.

    Args:
        word: What was given.
        words: What there is.
        count: How many to name at most.
        alike: From which share of common letters on, in [0, 1].
    """
    lower = {w.lower(): w for w in words}
    return [lower[w] for w in difflib.get_close_matches(word.lower(), lower, count, alike)]


def did_you_mean(likely: Iterable[str]) -> str:
    """`` Did you mean a or b?``, to be put behind a sentence; empty for none."""
    names = " or ".join(likely)
    return f" Did you mean {names}?" if names else ""


def is_path(name: str) -> bool:
    """Whether a name is ``module:attribute``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def import_named(path: str) -> Any:
    """The thing that ``module:attribute`` names; the module has to be importable.

    Raises:
        ValueError: No such module, one that fails, or nothing of that name in it.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{error}; it has to lie in a folder of $PYTHONPATH") from error
    except AttributeError as error:
        raise ValueError(str(error)) from error


def import_callable(path: str) -> Callable[..., Any]:
    """The function or class that ``module:attribute`` names; raises as `import_named` does.

    Raises:
        ValueError: It cannot be called.
    """
    found = import_named(path)
    if not callable(found):
        raise ValueError(f"it is a {type(found).__name__}, which cannot be called")
    return cast("Callable[..., Any]", found)


def find_named(name: str, known: Mapping[str, type[T]], base: type[T]) -> type[T]:
    """A class by its word or path.

    Args:
        name: Word or path.
        known: Classes by word.
        base: What a class of one's own derives from.

    Raises:
        ValueError: No such class.
    """
    if not isinstance(name, str) or not is_path(name):
        if isinstance(name, str) and name in known:
            return known[name]
        raise ValueError(f"no such name: allowed are {', '.join(known)}, or module:Class")
    found = import_named(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"it is no class that derives from {base.__module__}.{base.__name__}")
    return found

"""Text in the width of a terminal; pipes, files and notebooks get their lines whole."""

import os
import re
from typing import IO

COMMAND = "  "
"""What a line begins with that is to be typed, not read."""


def width_of(stream: IO[str]) -> int | None:
    """Columns of the terminal behind a stream; None where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):  # a stand-in for a terminal, or a closed one
        return None


def fitted(text: str, width: int | None) -> str:
    """Break lines at spaces so that they fit; a word that is longer stays whole.

    Parts of a line that begins with :data:`COMMAND` end in a backslash: a shell takes them as one.

    Args:
        text: Any number of lines.
        width: Columns; None leaves the text as it is.
    """
    if width is None:
        return text
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    command = line.startswith(COMMAND)
    end, further = (" \\", 2 * COMMAND) if command else ("", "  " * line.startswith("- "))
    # What stands in quotes is one word to a shell.
    first, *words = re.findall(r"(?:'[^']*'|\S)+" if command else r"\S+", line)
    lines = [COMMAND * command + first]
    for word in words:
        if len(lines[-1]) + 1 + len(word) + len(end) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(further + word)
    return f"{end}\n".join(lines)

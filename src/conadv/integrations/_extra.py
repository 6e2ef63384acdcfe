"""What to say where the trainer that a file is for is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from conadv.errors import install_command


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Enclose the imports that an extra brings.

    Raises:
        ModuleNotFoundError: in one line, with the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"conadv.integrations.{name} needs {error.name}, which is not installed. "
            f"Type: {install_command(name)}",
            name=error.name,
        ) from None

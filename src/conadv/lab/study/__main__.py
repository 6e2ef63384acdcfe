"""``python -m conadv.lab.study FOLDER``: a worker of a study, as its supervisor starts it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

REPLACE_ME = 75
"""Exit code of a worker that wants to be replaced by a new process."""
INTERRUPTED = 130
REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until every run of the study has an outcome; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m conadv.lab.study", description=__doc__)
    parser.add_argument("folder", type=Path, help="a study folder that `conadv study` prepared")
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    given = parser.parse_args(arguments)

    from rich.console import Console

    from conadv.errors import ConadvError, Interrupted
    from conadv.lab.study.worker import ProcessUnusable, Worker

    try:
        console = Console(file=sys.stderr, force_terminal=False, soft_wrap=True)
        Worker(given.folder, console=console, parent=given.parent).work()
    except ProcessUnusable:
        return REPLACE_ME
    except (Interrupted, KeyboardInterrupt) as error:
        print(error, file=sys.stderr, flush=True)
        return INTERRUPTED
    except ConadvError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

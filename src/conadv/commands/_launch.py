"""``--devices N``: start this command again as N processes, with PyTorch's own launcher."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def launch(arguments: Sequence[str], devices: int, max_restarts: int = 0) -> int:
    """Run ``conadv ARGUMENTS`` on one machine as several processes, one per device.

    Several machines are started with ``torchrun ... -m conadv ARGUMENTS``, as deploy/ shows.

    Args:
        arguments: what follows ``conadv``, without ``--devices``.
        devices: number of processes, at least 2.
        max_restarts: how often a failed process group is started again.

    Returns:
        The exit code: 0, or that of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # What failed is told by the ranks themselves, once.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    parser = get_args_parser()
    options = ["--standalone", "--nproc-per-node", str(devices)]
    options += ["--max-restarts", str(max_restarts), "-m", "conadv", *arguments]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    try:
        run(parser.parse_args(options))
    except ChildFailedError as error:
        # The launcher's own summary would bury what they said.
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code if code > 0 else 128 - code for code in codes if code), 1)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def without(arguments: Sequence[str], option: str) -> list[str]:
    """Arguments without one option and its value."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept


def own_arguments() -> list[str]:
    """What follows ``conadv`` on the command line of this process."""
    return sys.argv[1:]

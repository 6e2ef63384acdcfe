"""Starting this command again: as N processes with PyTorch's own launcher, or later, by SLURM."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from conadv.errors import ConadvError

CHECKPOINT_SECONDS = 600
"""What processes get for a checkpoint after a signal, before the launcher kills them."""
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""Signals that the launcher hands on."""


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
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(CHECKPOINT_SECONDS))
    parsed = parser.parse_args(options)
    known = [name for name in STOPPING if hasattr(signal, name)]
    parsed.signals_to_handle = ",".join(
        name for name in known if signal.getsignal(signal.Signals[name]) is not signal.SIG_IGN
    )
    try:
        run(parsed)
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


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job that this process belongs to, as ``scontrol`` names it."""
    array, task = (environment.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")


def requeue(job: str) -> None:
    """Have SLURM start a job again.

    Raises:
        ConadvError: It does not.
    """
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConadvError(f"could not run {' '.join(command)}: {error.strerror}.") from error
    if done.returncode != 0:
        raise ConadvError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def own_arguments() -> list[str]:
    """What follows ``conadv`` on the command line of this process."""
    return sys.argv[1:]

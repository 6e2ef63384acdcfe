"""A study as an array of SLURM jobs that share its folder."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from conadv._files import write_text
from conadv.errors import StudyError
from conadv.lab.study.files import StudyFolder

SCRIPT = "study.sbatch"
_OWN = ("array", "job-name", "output", "requeue", "open-mode", "signal", "ntasks")
_TEMPLATE = """#!/bin/bash
# The study in this folder, on {jobs} jobs at once; written by `conadv study --launcher slurm`.
# Every task is the same command: it makes the runs that nobody else is at, until none is left.
# The folder must lie on storage that all machines see.

#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --output={logs}/slurm-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the end, SIGTERM to the task: time for a checkpoint.
#SBATCH --signal=TERM@120
{options}
set -u
status=0
srun {command} || status=$?

# Stopped by a signal: the run at hand has a checkpoint. Back into the queue.
if [ "$status" -eq 130 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def write_script(
    folder: StudyFolder, jobs: int, workers: int = 1, options: Mapping[str, str] | None = None
) -> Path:
    """Write the sbatch script into the study folder.

    Args:
        folder: Of the study, prepared.
        jobs: Tasks of the array.
        workers: Processes of each task.
        options: Further options of sbatch, such as ``{"partition": "gpu", "time": "12:00:00"}``.

    Raises:
        StudyError: An option that the script sets itself, or that is no option.
    """
    lines = []
    for name, value in (options or {}).items():
        if name in _OWN:
            raise StudyError(f"--slurm {name}={value}: the script sets {name} itself.")
        if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in value:
            raise StudyError(f"--slurm {name}={value}: give an option of sbatch, as time=12:00:00.")
        lines.append(f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}")
    root = folder.root.resolve()
    command = [sys.executable, "-m", "conadv", "study", str(root), "--workers", str(workers)]
    text = _TEMPLATE.format(
        name=root.name,
        jobs=jobs,
        last=jobs - 1,
        logs=root / folder.logs.name,
        options="\n".join([*lines, ""]),
        command=shlex.join(command),
    )
    path = folder.root / SCRIPT
    write_text(path, text)
    return path


def submit(script: Path) -> str | None:
    """Hand the script to SLURM; its answer, or None where there is no sbatch.

    Raises:
        StudyError: SLURM refuses it.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        return None
    done = subprocess.run(
        [sbatch, str(script.resolve())], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise StudyError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip()


def parse_options(given: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` pairs of the command line."""
    pairs = (text.partition("=") for text in given)
    return {name.lstrip("-"): value for name, _, value in pairs}

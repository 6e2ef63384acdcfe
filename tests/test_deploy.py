"""The launch files of deploy/: their own commands, run here on two processes."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support.runs import TINY

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SMALL = [*TINY, "train.steps=3", "hardware.timeout=60"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PET_"))}
    path = f"{tmp_path}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    limits = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**kept, **limits, "PATH": path, **more}


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=200, check=False
    )


def finished(out: Path, processes: int) -> bool:
    environment = json.loads((out / "environment.json").read_text())
    assert environment["hardware"]["processes"] == processes
    return json.loads((out / "result.json").read_text())["status"] == "finished"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """One machine that answers like SLURM's commands."""
    out = tmp_path / "run"
    # srun: its own options away, then the command, as a task of this machine.
    script(
        tmp_path / "srun", 'while case $1 in --*) true;; *) false;; esac; do shift; done\n"$@"\n'
    )
    script(
        tmp_path / "scontrol",
        f'case $1 in show) echo localhost;; requeue) echo "$2" >> {tmp_path}/requeued;; esac\n',
    )
    return environment(
        tmp_path,
        SLURM_JOB_ID="7",
        SLURM_JOB_NODELIST="here",
        SLURM_NNODES="1",
        SLURM_GPUS_ON_NODE="2",
        PORT="0",
        RECIPE="smoke",
        OUT=str(out),
        OVERRIDES=" ".join(SMALL),
    )


def test_slurm(slurm: dict[str, str], tmp_path: Path) -> None:
    done = run(["bash", str(ROOT / "deploy/slurm.sbatch")], slurm)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path / "run", 2)
    assert not (tmp_path / "requeued").exists()
    again = run(["bash", str(ROOT / "deploy/slurm.sbatch")], slurm)  # started once more
    assert again.returncode == 0 and "test accuracy" in again.stdout, again.stderr


def test_slurm_requeues_what_was_interrupted(slurm: dict[str, str], tmp_path: Path) -> None:
    """Signals as srun and SLURM send them: to the launcher and to its processes, twice."""
    slurm["OVERRIDES"] = slurm["OVERRIDES"].replace("train.steps=3", "train.steps=100000")
    job = subprocess.Popen(
        ["bash", str(ROOT / "deploy/slurm.sbatch")],
        env=slurm,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    _, errors = job.communicate()
    assert (tmp_path / "requeued").read_text() == "7\n", errors
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "interrupted"


def test_slurm_names_what_is_missing(slurm: dict[str, str]) -> None:
    del slurm["RECIPE"]
    done = run(["bash", str(ROOT / "deploy/slurm.sbatch")], slurm)
    assert done.returncode != 0 and "name a recipe" in done.stderr


def test_slurm_directives() -> None:
    lines = (ROOT / "deploy/slurm.sbatch").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert "--requeue" in directives and "--signal=TERM@120" in directives
    assert all(d.startswith("--") for d in directives)
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # would be ignored


def test_kubernetes(tmp_path: Path) -> None:
    job = yaml.safe_load((ROOT / "deploy/pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    policy = job["spec"]["elasticPolicy"]
    assert policy["maxReplicas"] == worker["replicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
    volumes = {v["name"] for v in worker["template"]["spec"]["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert set(mounts) == volumes
    command = list(container["command"])
    out = command.index("--out") + 1
    assert command[out].startswith(mounts["runs"])
    command[out] = str(tmp_path / "run")
    recipe = command.index("train") + 1
    assert not command[recipe].startswith("-")
    command[recipe : recipe + 1] = ["smoke", *SMALL]
    given = {  # what the operator sets
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_RDZV_ENDPOINT": "localhost:0",
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
    }
    done = run(command, environment(tmp_path, **given))
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path / "run", 2)


def test_recipes_that_are_named_exist() -> None:
    from conadv.trainer.recipe import load_recipe

    for text in [(ROOT / "deploy" / f).read_text() for f in ("slurm.sbatch", "pytorchjob.yaml")]:
        names = [
            word for word in text.replace("RECIPE=", " ").split() if word.startswith("cifar10-")
        ]
        assert names
        for name in names:
            load_recipe(name)

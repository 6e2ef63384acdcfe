"""Every script runs, and is the base with exactly one feature more."""

import subprocess
import sys

import pytest

from support.ports import free_port
from support.scripts import ROOT, load_script

FOLDER = ROOT / "examples" / "by_feature"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
OTHER_LOOPS = {"with_lightning"}
"""Their trainer's."""
TORCH_ABORTS_AT_EXIT = "terminate called without an active exception"
"""A thread of gloo lets go of its last tensor while the interpreter ends: pytorch#190489. The
trainer waits for these threads (tests/trainer/distributed/test_leave.py); a script of one's own,
which is what the example shows, is at torch's mercy on a loaded machine."""


def lines_of_main(name: str) -> list[str]:
    source = (FOLDER / f"{name}.py").read_text()
    return source.partition("def main() -> None:\n")[2].splitlines()


@pytest.mark.timeout(90)
@pytest.mark.filterwarnings("ignore:::lightning.*", "ignore:::torch.*")
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "ddp"])
def test_it_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for trainer in ("accelerate", "lightning"):
        if name.endswith(trainer):
            pytest.importorskip(trainer)
    load_script(f"examples/by_feature/{name}.py").main()
    assert "adversarial" in capsys.readouterr().out


@pytest.mark.slow
def test_ddp_runs_on_two_processes() -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-port", str(free_port()), str(FOLDER / "ddp.py")]
    command = [sys.executable, *launcher]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if TORCH_ABORTS_AT_EXIT not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("adversarial") == 2


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n not in {"base", *OTHER_LOOPS}])
def test_it_is_the_base_and_one_feature(name: str) -> None:
    base = {line.strip() for line in lines_of_main("base")}
    own = [line.strip() for line in lines_of_main(name)]
    marked = [line for line in own if "# +" in line]
    assert marked and {line for line in own if line not in marked} <= base


def test_the_features_are_those_that_the_readme_names() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert [name for name in SCRIPTS if f"[{name}.py]({name}.py)" not in readme] == []

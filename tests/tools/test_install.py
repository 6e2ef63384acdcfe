"""What the installer says when pip fails, and what it leaves behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.tools import TOOLS, load_tool

install = load_tool("install")
check_install = load_tool("check_install")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by "
            "'NewConnectionError(...: [Errno -3] Temporary failure in name resolution')'\n"
            "ERROR: No matching distribution found for torch>=2.9",
            "could not be reached",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "is full"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "PIP_CERT"),
        (
            "ERROR: Could not find a version that satisfies torch>=2.9 (from versions: 2.0, 2.1)\n"
            "ERROR: No matching distribution found for torch>=2.9",
            "no build for this Python",
        ),
        (
            "ERROR: Could not find a version that satisfies torch>=2.9 (from versions: none)\n"
            "ERROR: No matching distribution found for torch>=2.9",
            "no release at all",
        ),
        ("ERROR: ResolutionImpossible: for help visit", "contradict each other"),
        ("Segmentation fault", "exit code 139"),
    ],
)
def test_pips_failure_becomes_advice(output: str, words: str) -> None:
    text = install.diagnose(output, 139)
    assert words in text
    assert "run the same command again" in text


def test_a_missing_network_is_named_and_leaves_no_stamp(tmp_path: Path) -> None:
    """A real pip in a real new environment, pointed at a port where nobody listens."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment |= {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PIP_TIMEOUT": "2",
        "PIP_CONFIG_FILE": os.devnull,
        "CONADV_MIN_DISK_GB": "0.1",
    }
    venv = tmp_path / "venv"
    done = subprocess.run(
        [sys.executable, str(TOOLS / "install.py"), "--venv", str(venv), "--extras", "dev"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode != 0
    assert "the package index could not be reached" in done.stderr
    assert (venv / "bin" / "python").exists()  # the next try goes on from here
    assert not list(venv.glob(".installed-*"))


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    venv = tmp_path / "precious"
    venv.mkdir()
    (venv / "thesis.txt").write_text("three years")
    assert "not made by this script" in install.make_room(str(venv))
    assert (venv / "thesis.txt").read_text() == "three years"


def test_a_broken_environment_of_our_own_is_made_anew(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    assert install.make_room(str(venv)) is None
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    assert not install.is_usable(str(venv / "bin" / "python"))
    assert install.make_room(str(venv)) is None
    assert os.listdir(venv) == [install.MARKER]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_distclean_removes_environments_only(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "thesis.txt").touch()
    # -o clean: without its prerequisite, which would clear the caches of the running tests.
    command = ["make", "-C", str(TOOLS.parent), "-o", "clean", "distclean", f"VENV={venv}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "left alone" in done.stderr
    (venv / "pyvenv.cfg").touch()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert not venv.exists()


def test_mismatched_torchvision_is_explained() -> None:
    text = check_install.explain(RuntimeError("operator torchvision::nms does not exist"), "PY")
    assert "Install both from the same place" in text
    assert "PY -m pip install --force-reinstall torch torchvision" in text


def test_another_import_error_is_not_blamed_on_torchvision() -> None:
    text = check_install.explain(ModuleNotFoundError("No module named 'PIL'"))
    assert "same place" not in text
    assert "No module named 'PIL'" in text


def test_this_environment_passes_the_check() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / "check_install.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "work" in done.stdout

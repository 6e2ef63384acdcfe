"""The set-up's checks: every way in which it cannot work is told before anything is downloaded."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.tools import ROOT, TOOLS, load_tool

preflight = load_tool("preflight")


def usage(free_gb: float) -> Callable[[str], SimpleNamespace]:
    return lambda _path: SimpleNamespace(free=free_gb * 1e9)


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13)])
def test_an_old_python_is_told_which_one_is_needed(version: tuple[int, int, int]) -> None:
    text = preflight.python_problem(version, "/usr/bin/python3", 64)
    assert ".".join(map(str, version)) in text
    assert "3.11 or newer" in text
    assert "PYTHON=" in text


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 4), (3, 14, 0), (4, 0, 0)])
def test_a_new_python_passes(version: tuple[int, int, int]) -> None:
    assert preflight.python_problem(version, "/usr/bin/python3", 64) is None


def test_a_32_bit_python_is_refused() -> None:
    assert "64-bit" in preflight.python_problem((3, 12, 0), "/usr/bin/python3", 32)


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_missing_module_names_debians_package(missing: str) -> None:
    def importer(name: str) -> None:
        if name == missing:
            raise ImportError(name)

    text = preflight.venv_problem(importer, (3, 12))
    assert f"no {missing} module" in text
    assert "apt install python3-venv" in text
    assert "python3.12-venv" in text


def test_this_python_can_make_an_environment() -> None:
    assert preflight.venv_problem() is None


def test_too_little_disk_is_refused_with_both_figures(tmp_path: Path) -> None:
    text = preflight.disk_problem(str(tmp_path / "new" / ".venv"), usage(7.9), minimum_gb=8.0)
    assert "7.9 GB are free" in text
    assert str(tmp_path) in text
    assert "needs 8 GB" in text


def test_enough_disk_passes(tmp_path: Path) -> None:
    assert preflight.disk_problem(str(tmp_path / ".venv"), usage(8.1), minimum_gb=8.0) is None


def test_a_finished_environment_needs_no_more_disk(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    venv.mkdir()
    assert preflight.disk_problem(str(venv), usage(1.0), minimum_gb=8.0) is not None
    (venv / ".installed-run").touch()
    assert preflight.disk_problem(str(venv), usage(1.0), minimum_gb=8.0) is None


def test_a_small_temporary_disk_names_tmpdir(tmp_path: Path) -> None:
    def free(path: str) -> SimpleNamespace:
        return SimpleNamespace(free=(1.0 if path == "/small" else 50.0) * 1e9)

    venv = str(tmp_path / ".venv")
    text = preflight.disk_problem(venv, free, temp="/small", minimum_gb=8.0, same_device=False)
    assert "/small" in text
    assert "TMPDIR=" in text


@pytest.mark.parametrize("name", ["preflight", "install"])
def test_the_checks_parse_on_old_python(name: str) -> None:
    source = (TOOLS / f"{name}.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    # What feature_version lets through and yet is new: annotations are no use here, and an
    # f-string would stop Python 2 before it could say anything.
    kinds = {type(node) for node in ast.walk(ast.parse(source))}
    assert not kinds & {
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.Match,
        ast.AsyncFunctionDef,
    }


def fake_python(folder: Path, name: str, patch: str) -> Path:
    """A Python that behaves like another one: it runs `patch` before the script it is given."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"import runpy, sys\n{patch}\n"
        "sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-c':\n    exec(sys.argv[1])\n"
        "else:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/{name}.py" "$@"\n')
    script.chmod(0o755)
    return script


OLD = "sys.version_info = (3, 9, 2, 'final', 0)"
NO_ENSUREPIP = "sys.modules['ensurepip'] = None"


def make(*arguments: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs make for an environment that does not exist, in a way that must not get to pip."""
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHON", "MAKEFLAGS", "VENV"}}
    return subprocess.run(
        ["make", *arguments, f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env={
            **variables,
            "PIP_INDEX_URL": "http://127.0.0.1:9/",
            "PIP_NO_INDEX": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
@pytest.mark.parametrize(
    ("patch", "words"),
    [(OLD, "Python 3.9.2"), (NO_ENSUREPIP, "apt install python3-venv")],
    ids=["old", "no-ensurepip"],
)
@pytest.mark.parametrize("target", ["test", "quickstart"])
def test_make_stops_before_a_download(target: str, patch: str, words: str, tmp_path: Path) -> None:
    python = fake_python(tmp_path / "bin", "fakepython", patch)
    done = make(target, f"PYTHON={python}", tmp_path=tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Installing" not in done.stdout
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_stops_on_a_full_disk(tmp_path: Path) -> None:
    done = make(
        "test", f"PYTHON={sys.executable}", tmp_path=tmp_path, CONADV_MIN_DISK_GB="100000000"
    )
    assert done.returncode != 0
    assert "GB are free" in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    done = make("test", "PYTHON=python9.9", tmp_path=tmp_path)
    assert done.returncode != 0
    assert "no python9.9 on the PATH" in done.stderr


def find_python(path: Path) -> str:
    done = subprocess.run(
        ["/bin/sh", str(TOOLS / "find_python.sh")],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_an_old_python3_gives_way_to_a_newer_one(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3", OLD)
    assert find_python(tmp_path / "bin") == "python3"  # nothing better: the check will speak
    fake_python(tmp_path / "bin", "python3.12", "")
    assert find_python(tmp_path / "bin") == "python3.12"


def test_a_python_that_can_make_environments_is_preferred(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3", NO_ENSUREPIP)
    assert find_python(tmp_path / "bin") == "python3"
    fake_python(tmp_path / "bin", "python3.11", "")
    assert find_python(tmp_path / "bin") == "python3.11"

"""The documentation builds as a site, strictly, and its reference has every public name."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import conadv

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "make_site.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_strictly_and_has_every_name(tmp_path: Path, tool: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for title, modules in tool.ROOMS.items():
        page = (tmp_path / "site" / "reference" / f"{title}.html").read_text()
        wanted = {path for module in modules for path in tool.public_names(module)}
        assert wanted and wanted <= set(re.findall(r'id="([\w.]+)"', page))
    page = (tmp_path / "site" / "reference" / "conadv.html").read_text()
    assert "random_start" in page  # with its arguments
    assert "Adversary.state_dict" in page  # and what is inherited


def test_the_reference_has_what_the_package_gives(tool: ModuleType) -> None:
    assert tool.public_names("conadv") == [f"conadv.{name}" for name in sorted(conadv.__all__)]


@pytest.mark.slow
def test_dead_links_and_forgotten_pages_fail_the_build(
    tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a site of three pages, under the rules of the whole one."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Front\n\n[Start](docs/index.md)\n")
    (tmp_path / "docs" / "loop.md").write_text("# Loop\n\n```text\n[no link](in-code.md)\n```\n")
    index = tmp_path / "docs" / "index.md"
    rules = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    nav = "nav:\n  - index.md\n  - loop.md\n  - repository/README.md\n"
    (tmp_path / "mkdocs.yml").write_text(f"{rules}\n{nav}")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "ROOMS", {})

    index.write_text("# Start\n\n[good](loop.md#loop) and [front](../README.md#front)\n")
    done = tool.build(tmp_path / "build")
    assert done.returncode == 0, done.stdout

    index.write_text("# Start\n\n[a](nowhere.md) [b](loop.md#no-heading) [c](../nothing.py)\n")
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n")
    done = tool.build(tmp_path / "build")
    assert done.returncode == 1
    told = ("nowhere.md", "no-heading", "nothing.py", "forgotten.md")
    assert [word for word in told if word not in done.stdout] == []

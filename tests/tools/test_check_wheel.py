"""The wheel by itself, and with each extra: what its metadata forget is missing."""

from pathlib import Path

import pytest

from support.tools import load_tool

pytest.importorskip("hatchling")
pytest.importorskip("packaging")
tool = load_tool("check_wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tool.build(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.parametrize("extra", tool.SMOKE, ids=lambda extra: extra or "alone")
def test_it_passes_a_smoke_test(extra: str, wheel: Path, tmp_path: Path) -> None:
    tool.check(wheel, extra, tmp_path / "environment", install=False)


def test_every_extra_has_a_smoke_test(wheel: Path) -> None:
    import tomllib

    project = tomllib.loads((tool.ROOT / "pyproject.toml").read_text())["project"]
    assert {*project["optional-dependencies"]} - {"dev"} == {*tool.SMOKE} - {""}


def test_only_what_the_metadata_ask_for_may_be_imported(wheel: Path) -> None:
    alone = tool.distributions(tool.requirements_of(wheel, []))
    assert {"torch", "numpy"} <= alone
    assert not alone & {"timm", "torchvision", "typer", "lightning", "accelerate"}
    assert "typer" in tool.distributions(tool.requirements_of(wheel, ["train"]))

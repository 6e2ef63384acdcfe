"""What sources keep outside of their folders goes to a folder of the test."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CONADV_DATA", str(folder))
    return folder


@pytest.fixture
def said() -> list[str]:
    """Lines that a source has told: give `said.append`."""
    return []

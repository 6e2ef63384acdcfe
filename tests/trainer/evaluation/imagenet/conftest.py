"""Folders in the layouts of the published test sets, empty but for their names."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="the lists of classes come with timm (extra train)")

MakeFolders = Callable[..., Path]


@pytest.fixture
def make_folders(tmp_path: Path) -> MakeFolders:
    """Make class folders in a folder; the first of them gets a file if one is named."""

    def make(where: str, folders: Iterable[str], file: str = "") -> Path:
        root = tmp_path / where
        folders = list(folders)
        for name in folders:
            (root / name).mkdir(parents=True)
        if file:
            (root / min(folders) / file).touch()
        return root

    return make

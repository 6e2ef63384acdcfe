"""The command that an error message names installs from where conadv itself was installed."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from conadv.errors import install_command

ROOT = Path(__file__).resolve().parents[1]


class Installed:
    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "conadv[train]"'),
        (
            {"url": "file:///a%20b/conadv", "dir_info": {"editable": True}},
            'pip install --editable "/a b/conadv[train]"',
        ),
        ({"url": "file:///src/conadv", "dir_info": {}}, 'pip install "/src/conadv[train]"'),
        (
            {"url": "file:///dist/conadv-1-py3-none-any.whl", "archive_info": {}},
            'pip install "conadv[train] @ file:///dist/conadv-1-py3-none-any.whl"',
        ),
        (
            {"url": "https://host/conadv.git", "vcs_info": {"vcs": "git", "commit_id": "1f"}},
            'pip install "conadv[train] @ git+https://host/conadv.git"',
        ),
        (
            {
                "url": "https://host/conadv.git",
                "vcs_info": {"vcs": "git", "commit_id": "1f", "requested_revision": "v1"},
            },
            'pip install "conadv[train] @ git+https://host/conadv.git@v1"',
        ),
    ],
    ids=["index", "editable", "folder", "wheel", "repository", "revision"],
)
def test_it_follows_the_way_of_installing(
    origin: object, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert install_command("train") == command


def test_a_checkout_that_was_not_installed_names_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("train", "report") == f'pip install --editable "{ROOT}[train,report]"'

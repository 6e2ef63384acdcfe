"""Shards from a server of our own. No network is used."""

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conadv.errors import DataError
from conadv.trainer.data.sources import Manifest, fetch, open_source
from conadv.trainer.data.sources.manifest import MANIFEST
from support.images import encoded, shard

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


class Server:
    """Serves a folder; `answers` puts other behaviour in place of a path."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, list[Answer]] = {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/").partition("?")[0]
                server.asked.append(path)
                file = folder / path
                if server.answers.get(path):
                    server.answers[path].pop(0)(self, file.read_bytes())
                elif file.is_file():
                    whole(self, file.read_bytes())
                else:
                    self.send_error(404)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


def whole(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def cut_off(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def cut_off_without_length(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content[:1200])


def broken(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(503)


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.0)
    folder = tmp_path / "www"
    shard(folder / "d" / "x-00.tar", [0, 1])
    shard(folder / "d" / "x-01.tar", [1], first=2)
    made = Server(folder)
    thread = threading.Thread(target=made.http.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


def test_shards_are_fetched_once(server: Server, said, cache: Path) -> None:
    for _ in range(2):
        source = open_source(f"{server.url}/d/x-{{00..01}}.tar", "train", said.append)
        assert [source.read(i) for i in range(3)] == [encoded(i) for i in range(3)]
        assert source.labels.tolist() == [0, 1, 1]
    assert server.asked == ["d/manifest.json", "d/x-00.tar", "d/x-01.tar"]
    assert "fetching shard 2 of 2: http" in said[1]
    assert {"x-00.tar", "x-01.tar"} <= kept(cache)


def test_a_local_copy_has_the_same_fingerprint(server: Server, said, tmp_path: Path) -> None:
    theirs = open_source(f"{server.url}/d/x-{{00..01}}.tar", "train", said.append)
    ours = open_source(tmp_path / "www" / "d", "train", said.append)
    assert theirs.fingerprint == ours.fingerprint


@pytest.mark.parametrize("failure", [cut_off, cut_off_without_length, broken])
def test_one_failure_is_tried_again(server: Server, said, failure: Answer) -> None:
    server.answers["d/x-00.tar"] = [failure]
    source = open_source(f"{server.url}/d/x-00.tar", "train", said.append)
    assert source.read(1) == encoded(1)
    assert server.asked.count("d/x-00.tar") == 2


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (cut_off, r"cut off after [\d,]+ of [\d,]+ bytes"),
        (cut_off_without_length, "what came is no whole tar archive"),
        (broken, "503 Service Unavailable"),
    ],
)
def test_what_fails_for_good_leaves_nothing_and_goes_on_later(
    server: Server, said, cache: Path, failure: Answer, message: str
) -> None:
    server.answers["d/x-01.tar"] = [failure] * fetch.ATTEMPTS
    with pytest.raises(DataError, match=rf"x-01\.tar could not be fetched, .*{message}"):
        open_source(f"{server.url}/d/x-{{00..01}}.tar", "train", said.append)
    assert kept(cache) == {".conadv.lock", "x-00.tar"}
    assert len(open_source(f"{server.url}/d/x-{{00..01}}.tar", "train", said.append)) == 3
    assert server.asked.count("d/x-00.tar") == 1


def test_an_interruption_leaves_nothing(server: Server, said, cache: Path, monkeypatch) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "index_tar", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_source(f"{server.url}/d/x-00.tar", "train", said.append)
    assert kept(cache) == {".conadv.lock"}


def test_what_a_killed_process_left_is_removed(server: Server, said, cache: Path) -> None:
    url = f"{server.url}/d/x-00.tar"
    open_source(url, "train", said.append)
    [file] = cache.rglob("x-00.tar")
    left = file.rename(file.with_name(".x-00.tar.host-1-1.partial"))
    assert len(open_source(url, "train", said.append)) == 2
    assert not left.exists()


def test_addresses_that_lead_nowhere(server: Server, said) -> None:
    with pytest.raises(DataError, match=r"y\.tar: the server says 404"):
        open_source(f"{server.url}/d/y.tar", "train", said.append)
    with pytest.raises(DataError, match=r"ends in \.tar"):
        open_source(f"{server.url}/d/", "train", said.append)
    with pytest.raises(DataError, match="2 folders"):
        open_source(f"{server.url}/{{d,e}}/x-00.tar", "train", said.append)
    with pytest.raises(
        DataError, match="http://127.0.0.1:9/.* could not be fetched, tried 3 times"
    ):
        open_source("http://127.0.0.1:9/x.tar", "train", said.append)


def test_an_address_with_a_query(server: Server, said, cache: Path) -> None:
    assert len(open_source(f"{server.url}/d/x-00.tar?token=1", "train", said.append)) == 2
    assert "x-00.tar" in kept(cache)


@pytest.mark.parametrize("content", ['{"shards": 7}', "<html>404</html>"])
def test_another_programs_manifest_is_not_minded(server: Server, said, tmp_path, content) -> None:
    (tmp_path / "www" / "d" / MANIFEST).write_text(content)
    assert len(open_source(f"{server.url}/d/x-00.tar", "train", said.append)) == 2


def test_class_names_come_with_the_manifest(server: Server, said, tmp_path: Path) -> None:
    place = tmp_path / "www" / "d"
    (place / "x-00.tar").rename(place / "shard-000000.tar")
    manifest = Manifest("pets", "f", 2, 9, 0, ("cat", "owl", "fox"), (1, 1, 0))
    manifest.write(place)
    url = f"{server.url}/d/shard-000000.tar"
    with pytest.raises(DataError, match="are still being made"):
        open_source(url, "train", said.append)
    replace(manifest, complete=True).write(place)
    assert open_source(url, "train", said.append).classes == ("cat", "owl", "fox")

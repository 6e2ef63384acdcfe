"""Files are written whole or not at all, by any number of writers."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conadv import _files as files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.txt"
    texts = [letter * 100_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(path, text), texts))
    assert path.read_text() in texts
    assert names(path.parent) == ["x.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_path_that_is_not_utf8_has_one_that_is(tmp_path: Path) -> None:
    odd = tmp_path / "l\udce4uf"
    odd.mkdir()
    with files.in_utf8(tmp_path) as same, files.in_utf8(odd) as other:
        assert same == tmp_path
        (other / "x").write_text("text")
        assert str(other).isascii() and other.resolve() == odd
    assert (odd / "x").read_text() == "text" and not other.is_symlink()


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(ZeroDivisionError):
        files.write_atomic(path, lambda file: file.write(b"half") / 0)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert names(tmp_path) == ["x.json"]


def test_a_second_name_is_the_same_file_or_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("one", "two"):
        files.write_text(tmp_path / "a", text)
        files.link(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == text
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino
    monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError))
    files.write_text(tmp_path / "a", "three")
    files.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "three"
    assert names(tmp_path) == ["a", "b"]


def test_only_what_was_left_half_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # killed: no time to clean up
    with pytest.raises(ZeroDivisionError):
        files.write_atomic(tmp_path / "x", lambda file: 1 / 0)
    monkeypatch.undo()
    for mine in ("mine.partial", ".hidden", "x.txt"):
        (tmp_path / mine).touch()
    files.remove_partial(tmp_path)
    assert names(tmp_path) == [".hidden", "mine.partial", "x.txt"]

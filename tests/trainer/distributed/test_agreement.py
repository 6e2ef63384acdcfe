"""Ranks that were not started alike say so before they train."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import conadv
from conadv.errors import DistributedError
from conadv.trainer.distributed import World
from conadv.trainer.distributed.agreement import (
    check_agreement,
    code_checksum,
    weights_checksum,
)
from support.launches import start
from support.ports import free_port


@dataclass(frozen=True)
class Told(World):
    """A world whose other ranks say what the test wants."""

    others: tuple[dict[str, str], ...] = ()

    def gather(self, value):  # type: ignore[no-untyped-def]
        others = [{**value, **changes} for changes in self.others]
        return [value, *others]


FACTS = {"the recipe": "aa", "torch": "2"}


def world(*others: dict[str, str]) -> World:
    return Told(0, 1 + len(others), others=others)


def test_agreement_is_silent() -> None:
    check_agreement(FACTS, world({}, {}), "Do this.")
    check_agreement(FACTS, World(), "Do this.")


def test_what_differs_is_named_with_its_ranks() -> None:
    others = [{}, {"torch": "3"}, {}, {"torch": "3"}]
    with pytest.raises(DistributedError) as raised:
        check_agreement(FACTS, world(*others), "Do this.")
    message = str(raised.value)
    assert "the 5 processes do not agree on torch (ranks 0, 1, 3: 2; ranks 2, 4: 3)" in message
    assert "recipe" not in message and message.endswith("Do this.")


def test_many_ranks_are_not_all_listed() -> None:
    with pytest.raises(DistributedError, match=r"ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more: 2"):
        check_agreement(FACTS, world(*[{}] * 99, {"torch": "3"}), "Do this.")


def test_one_bit_of_one_weight_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).bfloat16()
    before = weights_checksum(model)
    assert weights_checksum(model) == before and len(before) == 8
    bits = model[2].weight.data.view(torch.int16)
    bits[0, 0] ^= 1
    assert weights_checksum(model) != before
    bits[0, 0] ^= 1
    assert weights_checksum(model) == before
    model[1].num_batches_tracked += 1
    assert weights_checksum(model) != before


def test_code_is_this_package() -> None:
    assert len(code_checksum()) == 12 and code_checksum() == code_checksum()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_rank_with_another_recipe_and_program_is_caught_at_the_start(tmp_path: Path) -> None:
    """The launcher gives every rank the same command; one has another copy, and other settings."""
    package = Path(conadv.__file__).parent
    shutil.copytree(package, tmp_path / "other/conadv", ignore=shutil.ignore_patterns("*.pyc"))
    with (tmp_path / "other/conadv/optim/lars.py").open("a") as file:
        file.write("# One line more.\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        f"    sys.path.insert(0, {str(tmp_path / 'other')!r})\n"
        "    sys.argv += ['optimizer.weight_decay=0.125']\n"
        "    sys.orig_argv += ['optimizer.weight_decay=0.125']\n"
    )
    process = start(tmp_path / "run", ranks=2, path=tmp_path)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2
    assert errors.count("do not agree on the recipe (rank 0: ") == 1, errors
    assert f"and conadv's code (rank 0: {code_checksum()}; rank 1: " in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run/metrics.jsonl").exists()


JOIN = """
from conadv.errors import DistributedError
from conadv.trainer.distributed import join
try:
    with join("cpu", 60):
        print("joined")
except DistributedError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ranks_of_launches_of_different_sizes_say_so(tmp_path: Path) -> None:
    """Nobody waits for the third process, which one of two machines was promised."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(2 + rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=150)[0] for process in processes]
    assert "rank 0 was started as one of 2 processes, rank 1 as one of 3" in said[0]
    assert "rank 1 was started as one of 3 processes, rank 0 as one of 2" in said[1]

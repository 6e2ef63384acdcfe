"""Ranks that were not started alike say so before they train."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from conadv.errors import DistributedError
from conadv.trainer.distributed import World
from conadv.trainer.distributed.agreement import (
    check_agreement,
    code_checksum,
    weights_checksum,
)
from support.launches import start


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
def test_another_recipe_on_one_rank_is_caught_at_the_start(tmp_path: Path) -> None:
    """The launcher gives every rank the same command; here one of them changes its mind."""
    change = tmp_path / "sitecustomize.py"
    change.write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
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
    assert "Traceback" not in errors
    assert not (tmp_path / "run/metrics.jsonl").exists()

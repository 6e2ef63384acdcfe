"""Ranks that were not started alike: found before they train, not after."""

import hashlib
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from conadv.errors import DistributedError
from conadv.optim.sharded import is_dtensor
from conadv.trainer.distributed.world import World

SHOWN = 8
"""How many ranks a message names one by one."""


def check_agreement(facts: Mapping[str, object], world: World, remedy: str) -> None:
    """Compare what the ranks know.

    Args:
        facts: what has to be the same everywhere, by name; small values.
        world: this process among those of the run.
        remedy: what to do, the end of the message.

    Raises:
        DistributedError: on every rank the same: what differs, and which ranks have which value.
    """
    known = world.gather({name: str(value) for name, value in facts.items()})
    problems = []
    for name in facts:
        values: dict[str, list[int]] = {}
        for rank, of_rank in enumerate(known):
            values.setdefault(of_rank.get(name, "nothing"), []).append(rank)
        if len(values) > 1:
            listed = "; ".join(f"{_ranks(ranks)}: {value}" for value, ranks in values.items())
            problems.append(f"{name} ({listed})")
    if problems:
        raise DistributedError(
            f"the {world.size} processes do not agree on {' and '.join(problems)}. {remedy}"
        )


def weights_checksum(model: nn.Module) -> str:
    """CRC-32 of every parameter and buffer, to the last bit and wherever they lie.

    Parameters that lie in parts on several ranks are left out: what ranks hold of them differs.
    """
    total = 0
    for name, value in model.state_dict().items():
        if is_dtensor(value):
            continue
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        total = zlib.crc32(data.numpy(), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


@lru_cache(maxsize=1)
def code_checksum() -> str:
    """Checksum of the package's sources: an edited copy on one machine is another program."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _ranks(ranks: list[int]) -> str:
    few = ", ".join(str(rank) for rank in ranks[:SHOWN])
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {few}{more}"

"""Many processes of one launch, forked: what each connects to and reads.

    python many.py FOLDER PROCESSES MESH

Leaves ``PROCESSES-RANK.json`` in the folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from conadv.trainer.checkpoint import store
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.distributed import World, join, world
from support.ports import free_port

STATE = {
    "step": 4,
    "trainer": {
        "weights": torch.arange(70_000, dtype=torch.float32).view(7, -1).t(),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "mask": [torch.tensor([True, False]), None, torch.empty(0, 3)],
        0: "not a tensor",
    },
}


def sockets() -> int:
    """Open sockets of this process."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except OSError:
            continue
    return found


def work(rank: int, size: int, folder: Path) -> None:
    """Join, read a checkpoint that all have written, and average a gradient."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in names.items()})
    read: list[str] = []
    load = store.load_file

    def counted(path: Path) -> dict[str, Any]:
        read.append(path.name)
        return load(path)

    store.load_file = counted
    with join("cpu", 60) as joined:
        found = CheckpointStore(folder / f"of-{size}", 1, joined).load_newest(
            lambda ranks, part: part(joined.rank)
        )
        assert found is not None and found["own"] == {"rank": rank}
        assert torch.equal(found["trainer"]["weights"], STATE["trainer"]["weights"])
        assert found["trainer"]["half"].dtype == torch.bfloat16 and found["trainer"]["half"] == 1.5
        assert found["trainer"]["mask"][0].tolist() == [True, False]
        assert found["trainer"]["mask"][2].shape == (0, 3)
        assert found["trainer"][0] == "not a tensor"
        gradient = torch.full((1000,), float(rank))
        dist.all_reduce(gradient)
        assert gradient[0] == size * (size - 1) / 2
        left = {"sockets": sockets(), "read": read}
        joined.barrier()
    (folder / f"{size}-{rank}.json").write_text(json.dumps(left))


def main(folder: Path, size: int, mesh: int) -> int:
    """Fork the processes; how many of them failed."""
    world.MESH = mesh
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = folder / f"of-{size}"
    place.mkdir(exist_ok=True)
    for rank in range(size):
        CheckpointStore(place, 1, World(rank, size)).save({**STATE, "own": {"rank": rank}}, 4)
    children = []
    for rank in range(size):
        if not (child := os.fork()):
            try:
                work(rank, size, folder)
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

"""Training with a script of timm's kind, in this process and on two ranks."""

from pathlib import Path
from typing import Any

import timm.data
import timm.task
import torch
import torch.distributed as dist

from conadv.integrations.timm import main
from support.loops import EPSILON
from support.trainers import act_as_rank, data, outcome, plain_loop, shared_folder

WORLD = 2
SCRIPT = str(Path(__file__).with_name("timm_script.py"))


def run(folder: Path, *options: str, schedule: str = "recycled") -> None:
    own = ["--epsilon", str(EPSILON * 255), "--schedule", schedule]
    before = {name: getattr(timm.task, name) for name in timm.task.__all__}
    resolve = timm.data.resolve_data_config
    try:
        main([*own, SCRIPT, "--output", str(folder), *options])
    finally:
        timm.data.resolve_data_config = resolve
        for name, value in before.items():
            setattr(timm.task, name, value)


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """Of the checkpoint that the script leaves."""
    if dist.is_initialized():
        dist.barrier()
    saved = torch.load(folder / "last.pth.tar", weights_only=False)
    state = saved["task_state"]["conadv"]["ranks"][rank]["state"]
    tensors: list[Any] = []
    for copies in state.get("pending", []):
        tensors += [value for value in copies.values() if isinstance(value, torch.Tensor)]
    return {"weights": saved["state_dict"], "pending": tensors}


def train(folder: Path, rank: int = 0, **options: Any) -> dict[str, Any]:
    arguments = [f"--{k}={v}" for k, v in options.items() if k in ("accumulation", "clip")]
    arguments += ["--bf16"] if options.get("bf16") else []
    run(folder, *arguments, schedule=options.get("schedule", "recycled"))
    return result(folder, rank)


def resume(folder: Path, rank: int = 0) -> dict[str, Any]:
    run(folder)
    if dist.is_initialized():
        dist.barrier()
    run(folder, "--epochs=2", f"--resume={folder / 'last.pth.tar'}")
    return result(folder, rank)


def plain(micro_batches: Any, **options: Any) -> dict[str, Any]:
    return outcome(*plain_loop(micro_batches, forward="auto", **options))


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `support.gloo.run_cases`: (by timm, by hand) on each rank."""

    def case(rank: int, function: Any, epochs: int = 1, **options: Any) -> dict[str, Any]:
        act_as_rank(rank, world)
        mine = data(options.get("accumulation", 1), world)[rank::world]
        found = function(shared_folder(), rank, **options)
        return {"trainer": found, "plain": plain(mine * epochs, ddp=True, **options)}

    return {
        ("fp32",): lambda rank: case(rank, train),
        ("accumulation",): lambda rank: case(rank, train, accumulation=2),
        ("resume",): lambda rank: case(rank, resume, epochs=2),
    }

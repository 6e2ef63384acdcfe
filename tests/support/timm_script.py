"""What timm's train.py does with a task, in short; its own is not in timm's wheel.

python -m conadv.integrations.timm --epsilon 8 timm_script.py --output FOLDER
"""

import argparse
from contextlib import nullcontext

import torch
import torch.distributed as dist
from timm.data import resolve_data_config
from timm.task import ClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver, dispatch_clip_grad
from torch import nn

from support.loops import MEAN, STD, network, sgd
from support.trainers import data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    parser.add_argument("--resume")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = network(split=False)
    resolve_data_config({"mean": MEAN, "std": STD})
    task = ClassificationTask(model=model, criterion=nn.CrossEntropyLoss(), verbose=False)
    model, eval_model = task.get_trainable_module(), task.get_eval_model()
    optimizer = sgd(model)
    start = 0
    if args.resume:
        start = resume_task_checkpoint(task, args.resume, optimizer=optimizer)
    if ranks > 1:
        task.prepare_distributed()
        model = task.get_trainable_module()
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=args.output, task=task)
    loader = data(args.accumulation, ranks)[rank::ranks]
    for epoch in range(start, args.epochs):
        model.train()
        for number, (images, labels) in enumerate(loader, 1):
            update = number % args.accumulation == 0
            with task.no_sync() if ranks > 1 and not update else nullcontext():
                with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                    loss = task(images, labels)["loss"]
                if args.accumulation > 1:
                    loss /= args.accumulation
                loss.backward()
            if update:
                if args.clip is not None:
                    dispatch_clip_grad(task.get_clip_parameters(), args.clip)
                optimizer.step()
                optimizer.zero_grad()
        eval_model.eval()
        with torch.inference_mode():
            eval_model(loader[0][0])
        if rank == 0:
            saver.save_checkpoint(epoch)


if __name__ == "__main__":
    main()

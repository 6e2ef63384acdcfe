"""Distributed data parallel: the same script on every process.

torchrun --nproc-per-node 2 examples/by_feature/ddp.py
"""

import torch
import torch.distributed as dist  # +
from base import ATTACK, batches, criterion, network, report
from torch.nn.parallel import DistributedDataParallel  # +

import conadv


def main() -> None:
    dist.init_process_group("gloo")  # + on GPUs: "nccl"
    torch.manual_seed(0)
    model = conadv.split_norms(network())
    ddp = DistributedDataParallel(model)  # +
    adversary = conadv.Adversary(ddp, ATTACK)  # +
    torch.manual_seed(1 + dist.get_rank())  # + images of its own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches():
        loss = adversary.loss(images, labels, criterion)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    report(adversary)
    dist.destroy_process_group()  # +


if __name__ == "__main__":
    main()

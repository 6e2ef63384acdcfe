"""One rank of `link_overlap.py`: trains a few steps on command and says how long they took.

Commands come as lines of JSON on the standard input, answers go as lines of JSON to the standard
output. The process ends when its input does, so that no rank outlives its parent.
"""

# No `from __future__ import annotations` here: DDP reads the hook's annotations as classes.
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from _link_figures import PHASES, WEIGHTS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

import conadv
from conadv.adversary.overlap import DeferredAllReduce
from conadv.schedules import Schedule
from conadv.trainer.distributed.world import leave
from conadv.trainer.models.zoo import create_model

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vanilla": conadv.Vanilla,
    "sequential": conadv.Sequential,
    "lookahead": conadv.Lookahead,
}
WORLD = 2
TIMEOUT = timedelta(seconds=120)


class Transfer(threading.Thread):
    """Bytes on a modelled link: a thread that sleeps until they would have arrived."""

    def __init__(self, arrival: float) -> None:
        super().__init__(daemon=True)
        self.arrival = arrival
        self.start()

    def run(self) -> None:
        """Sleep."""
        time.sleep(max(0.0, self.arrival - time.monotonic()))

    def wait(self) -> None:
        """Block until they have arrived."""
        self.join()


class ModelledLink:
    """A link that carries one bucket after the other at a given rate."""

    def __init__(self) -> None:
        self.bits_per_second: float | None = None
        self._free = 0.0

    def carry(self, size: int) -> Transfer | None:
        """Send so many bytes behind those that are under way; None without a limit."""
        if self.bits_per_second is None:
            return None
        start = max(self._free, time.monotonic())
        # Two ranks: each sends as many bytes as the bucket has (2 (n - 1) / n times its size).
        self._free = start + 8 * size / self.bits_per_second
        return Transfer(self._free)


class SwitchedAllReduce(DeferredAllReduce):
    """With a switch, for steps that only compute, and on a link that may be a model of one."""

    def __init__(self, model: DistributedDataParallel, link: ModelledLink) -> None:
        super().__init__(model)
        self.on = True
        self._link = link

    def _start(
        self,
        state: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        if self.on:
            done = super()._start(state, bucket)
            if (transfer := self._link.carry(bucket.buffer().nbytes)) is not None:
                self._works.append(transfer)  # type: ignore[arg-type]
            return done
        done = torch.futures.Future()
        done.set_result(bucket.buffer().div_(self._size))
        return done


class Stepper:
    """One schedule's model, optimizer and images, as the loop of docs/loop.md has them."""

    def __init__(self, options: dict[str, Any], schedule: str, rank: int, link: ModelledLink):
        torch.manual_seed(0)
        wide = {"widths": tuple(options["widths"])} if options["widths"] else {}
        model = create_model(options["model"], in_chans=3, num_classes=10, options=wide)
        conadv.split_norms(model).to(memory_format=torch.channels_last)
        self.ddp = DistributedDataParallel(
            model,
            bucket_cap_mb=options["bucket_mb"],
            gradient_as_bucket_view=True,
            **leave_buffers_alone(),  # as the trainer has it: broadcasts would count as well
        )
        self.overlap = SwitchedAllReduce(self.ddp, link)
        attack = conadv.Attack(4 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
        self.of_weights = schedule == WEIGHTS
        self._link = link
        self._mean: Transfer | None = None
        if self.of_weights:
            self.adversary = conadv.WeightAdversary(self.ddp, conadv.WeightAttack(), "recycled")
            self.adversary.wait_within(self._waiting)
        else:
            self.adversary = conadv.Adversary(self.ddp, attack, SCHEDULES[schedule]())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        generator = torch.Generator().manual_seed(rank)
        shape = (options["batch"], 3, options["image_size"], options["image_size"])
        images = (torch.rand(shape, generator=generator) - 0.5) / 0.25
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (options["batch"],), generator=generator)
        self._order_buckets()

    def _order_buckets(self) -> None:
        """A round without effect through every branch, as the trainer has one.

        DDP orders its buckets by the first backward pass it sees. Lookahead's first round goes
        through one branch only, and with the order of that round nothing travels before the end of
        each later backward pass.
        """
        both = {"adversarial": (self.images, self.labels)}
        loss = self.adversary.loss(
            self.images, self.labels, cross_entropy, fraction=0.0, views=both
        )
        loss.backward()
        self.adversary.skip()
        self.overlap.wait()
        self.optimizer.zero_grad(set_to_none=True)

    def communicate(self, on: bool) -> None:
        """Switch all that travels on or off."""
        self.overlap.on = on
        if self.of_weights:
            self.adversary._pending._group = self.ddp.process_group if on else None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        transfer, self._mean = self._mean, None
        if transfer is not None:
            transfer.wait()
        yield

    def step(self, label: Callable[[str], AbstractContextManager[Any]]) -> list[float]:
        """One training step; seconds of each of the PHASES. Lookahead attacks the same images."""
        ends = [time.perf_counter()]
        with label(PHASES[0]):
            self.adversary.peek(self.images, self.labels)
            self.adversary.loss(self.images, self.labels, cross_entropy).backward()
            ends.append(time.perf_counter())
        with label(PHASES[1]):
            self.adversary.collect()
            if self.of_weights and self.overlap.on:
                self._mean = self._link.carry(4 * (self.adversary._passes.space.size + 1))
            ends.append(time.perf_counter())
        with label(PHASES[2]):
            self.overlap.wait()
            ends.append(time.perf_counter())
        with label(PHASES[3]):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            ends.append(time.perf_counter())
        return [after - before for before, after in pairwise(ends)]


class Rank:
    """Answers commands."""

    def __init__(self, options: dict[str, Any], rank: int) -> None:
        self.rank = rank
        self.link = ModelledLink()
        self.steppers = {
            name: Stepper(options, name, rank, self.link) for name in (*SCHEDULES, WEIGHTS)
        }
        parameters = self.steppers["vanilla"].ddp.module.parameters()
        self.gradient_bytes = sum(p.nbytes for p in parameters if p.requires_grad)

    def limit(self, bits_per_second: float | None) -> dict[str, Any]:
        """The rate of the modelled link."""
        self.link.bits_per_second = bits_per_second
        return {}

    def block(
        self,
        schedule: str,
        steps: int,
        communicate: bool,
        label: Callable[[str], AbstractContextManager[Any]] = lambda name: nullcontext(),
    ) -> dict[str, Any]:
        """Some steps; seconds of each phase of each step, shape (steps, phases).

        The ranks begin each step together, with and without communication, so that waiting for
        the slower of them is in both or in neither.
        """
        stepper = self.steppers[schedule]
        stepper.communicate(communicate)
        phases = []
        for number in range(steps):
            if number == 0 or not stepper.of_weights:  # what travels on is not to be waited for
                dist.barrier()
            phases.append(stepper.step(label))
        return {"phases": phases}

    def reduce(self, times: int) -> dict[str, Any]:
        """All-reduces of as many bytes as the gradients have, with nothing beside them."""
        buffer, seconds = torch.zeros(self.gradient_bytes // 4), []
        for _ in range(times):
            dist.barrier()
            begin = time.perf_counter()
            transfer = self.link.carry(buffer.nbytes)
            dist.all_reduce(buffer)
            if transfer is not None:
                transfer.wait()
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    def trace(self, schedule: str, steps: int, folder: str) -> dict[str, Any]:
        """Some steps with communication under the profiler, in Chrome's format."""
        path = Path(folder) / f"{schedule}-rank{self.rank}.json"
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
            self.block(schedule, steps, True, record_function)
        recorded.export_chrome_trace(str(path))
        return {"path": str(path)}


def leave_buffers_alone() -> dict[str, Any]:
    """DDP's setting under its present name, or the one before."""
    names = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in names else "broadcast_buffers": False}


def commands() -> Iterator[dict[str, Any]]:
    """Lines of the standard input, until it ends."""
    while line := sys.stdin.readline():
        yield json.loads(line)


def answers() -> TextIO:
    """The standard output, for answers alone: what anybody else prints goes to standard error.

    Some releases of gloo report their connections there.
    """
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def main() -> None:
    """The only argument is the rank; the first line of the input holds the options."""
    rank = int(sys.argv[1])
    output = answers()

    def answer(found: dict[str, Any]) -> None:
        output.write(json.dumps(found) + "\n")
        output.flush()

    torch.set_num_threads(1)
    received = commands()
    options = next(received, None)
    if options is None:
        return
    meeting = f"file://{options['meeting']}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=TIMEOUT
    )
    worker = Rank(options, rank)
    answer({"gradient_bytes": worker.gradient_bytes, "torch": torch.__version__})
    try:
        for command in received:
            answer(getattr(worker, command.pop("do"))(**command))
    except BrokenPipeError:
        os._exit(1)  # nobody is left to read the answer, or a traceback
    del worker  # its wrapper holds the group, whose threads are to end now
    leave()


if __name__ == "__main__":
    main()

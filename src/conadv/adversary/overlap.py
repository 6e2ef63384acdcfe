"""Leave the time of the gradients' all-reduce free for the attack on the next batch.

DistributedDataParallel waits for its buckets at the end of `backward`, so an attack that is
issued afterwards overlaps nothing. Here the wait moves to just before the optimizer's step.
"""

# No `from __future__ import annotations` here: DDP reads the hook's annotations as classes.
import torch
import torch.distributed as dist
from torch import Tensor, nn


class DeferredAllReduce:
    """Start DDP's all-reduce during the backward pass, wait for it when you say so.

    A communication hook averages each bucket asynchronously and hands DDP a future that is
    finished already, so `backward` returns at once; with ``gradient_as_bucket_view=True`` the
    parameters' gradients are the buckets themselves, and hold the averages after `wait`. The
    result is what DDP without a hook gives.

    Args:
        model: wrapped with ``gradient_as_bucket_view=True``; it can have one hook.

    Raises:
        ValueError: the model is not such a wrapper.

    Example:
        >>> overlap = DeferredAllReduce(ddp)
        >>> loss = adversary.loss(images, labels, criterion)
        >>> loss.backward()      # the all-reduces are under way
        >>> adversary.collect()  # lookahead attacks the next batch meanwhile
        >>> overlap.wait()       # now the gradients are averages
        >>> optimizer.step()

    Do not read or clip gradients before `wait`. GradScaler.unscale_ counts as reading.
    """

    def __init__(self, model: nn.parallel.DistributedDataParallel) -> None:
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"DeferredAllReduce was given a {type(model).__name__}: wrap the model in "
                "DistributedDataParallel(model, gradient_as_bucket_view=True) first."
            )
        if not model.gradient_as_bucket_view:
            raise ValueError(
                "The wrapper copies its buckets into the gradients before the all-reduce is done: "
                "make it with DistributedDataParallel(..., gradient_as_bucket_view=True)."
            )
        self._group = model.process_group
        self._size = dist.get_world_size(self._group)
        self._works: list[dist.Work] = []
        model.register_comm_hook(state=None, hook=self._start)

    def _start(
        self,
        state: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer().div_(self._size)
        work = dist.all_reduce(buffer, group=self._group, async_op=True)
        assert work is not None
        self._works.append(work)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done

    def wait(self) -> None:
        """Block until every gradient is the mean over ranks (on a GPU: the current stream does)."""
        works, self._works = self._works, []
        for work in works:
            work.wait()

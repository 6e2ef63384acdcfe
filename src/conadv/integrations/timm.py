"""conadv in timm's own training script, which stays as it is.

    python -m conadv.integrations.timm --epsilon 4 train.py imagenet --model resnet50 ...

What stands before the script is for conadv, what follows is the script's. In place of timm's
classification task the script gets one that splits the network, trains on adversarial copies too
and keeps what is pending in timm's checkpoints, so that ``--resume`` goes on as if unbroken.
"""

import argparse
import importlib
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv.adversary import Adversary
from conadv.attack import Attack
from conadv.branches import split_norms
from conadv.integrations._extra import extra
from conadv.schedules import SCHEDULES

with extra("timm"):
    import timm.task
    from timm.task import ClassificationTask


class ConAdvTask(ClassificationTask):
    """timm's classification task on images and their adversarial copies.

    The first forward makes the adversary, when timm has compiled and wrapped the model. Gradients
    are collected at the end of each backward pass by themselves, for timm's loop has no place for
    it. timm saves on one process only, so the states of all meet in each validation.

    Args:
        model: not yet split.
        *arguments: see `ClassificationTask`.
        attack: what one adversarial step is.
        schedule: a name; lookahead, which has to see the next batch, is refused.
        **options: see `ClassificationTask`.

    Raises:
        ValueError: lookahead.
    """

    def __init__(
        self,
        model: nn.Module,
        *arguments: Any,
        attack: Attack,
        schedule: str = "recycled",
        **options: Any,
    ) -> None:
        if SCHEDULES[schedule]().reads_ahead:
            raise ValueError(
                "lookahead has to see the next batch, which timm's script does not show in step: "
                "use recycled."
            )
        super().__init__(split_norms(model), *arguments, **options)
        self.attack, self.schedule = attack, schedule
        self.adversary: Adversary | None = None
        self._state: dict[str, Any] | None = None
        self._stale = True
        model.register_forward_pre_hook(_in_validation(self._gather))

    def forward(self, images: Tensor, target: Any) -> dict[str, Any]:
        """The loss of the images and of the copies that are due, and the images' outputs."""
        adversary = self._ready()
        self._stale = True
        loss = adversary.loss(images, target, self.criterion)
        return {"loss": loss, "output": adversary.diagnostics.outputs}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What is pending on every rank; of one that has not met the others, nothing."""
        if ema or self.adversary is None:
            return {}
        if dist.is_initialized() and self._stale:
            warnings.warn(
                "This checkpoint was written without a validation before it, in which the ranks' "
                "adversarial copies meet: a run that resumes from it begins without copies.",
                stacklevel=2,
            )
            return {}
        return {"conadv": self.adversary.gathered_state_dict() if self._stale else self._state}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Keep it until the adversary is made."""
        if ema:
            return
        self._state = (state or {}).get("conadv")
        if self._state is None:
            warnings.warn(
                "The checkpoint holds no adversarial copies: the first step has none.", stacklevel=2
            )

    def _ready(self) -> Adversary:
        if self.adversary is None:
            self.adversary = Adversary(
                self.trainable_module, self.attack, self.schedule, auto_collect=True
            )
            if self._state is not None:
                self.adversary.load_gathered(self._state)
        return self.adversary

    def _gather(self) -> None:
        if self.adversary is not None and self._stale:
            with torch.inference_mode(False):
                self._state, self._stale = self.adversary.gathered_state_dict(), False


def _in_validation(function: Callable[[], None]) -> Callable[[nn.Module, Any], None]:
    """A forward hook; a function, so that copies of the model for an EMA do not copy the task."""

    def hook(module: nn.Module, inputs: Any) -> None:
        if not module.training:
            function()

    return hook


def main(arguments: Sequence[str] | None = None) -> None:
    """Run timm's script with the task that trains on adversarial copies."""
    parser = argparse.ArgumentParser(prog="python -m conadv.integrations.timm", description=__doc__)
    parser.add_argument("--epsilon", type=float, default=4.0, help="in grey levels, of 255")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="recycled")
    parser.add_argument("script", help="timm's train.py")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the script")
    chosen = parser.parse_args(arguments)
    normalisation: dict[str, Any] = {}
    timm_data: Any = importlib.import_module("timm.data")
    resolve = timm_data.resolve_data_config

    def resolving(*arguments: Any, **options: Any) -> Any:
        found = resolve(*arguments, **options)
        normalisation.update(mean=found["mean"], std=found["std"])
        return found

    def task(*arguments: Any, **options: Any) -> ConAdvTask:
        attack = Attack(chosen.epsilon / 255, **normalisation)
        return ConAdvTask(*arguments, attack=attack, schedule=chosen.schedule, **options)

    replaced = {name: _refuse for name in timm.task.__all__ if name.endswith("Task")}
    for name, value in {**replaced, "ClassificationTask": task}.items():
        setattr(timm.task, name, value)
    timm_data.resolve_data_config = resolving
    sys.argv = [chosen.script, *chosen.options]
    runpy.run_path(chosen.script, run_name="__main__")


def _refuse(*arguments: Any, **options: Any) -> None:
    raise SystemExit(
        "error: conadv trains timm's classification task; distillation and multi-label tasks have "
        "losses of their own."
    )


if __name__ == "__main__":
    main()

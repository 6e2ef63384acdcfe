"""Runs timm's training script with conadv's CIFAR networks among timm's models.

    python benchmarks/_timm_runner.py TRAIN_PY [its arguments]

torchvision's CIFAR10 checks the archive's MD5; the benchmark gives it the same images in files of
its own, so that check alone is switched off.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torchvision
from timm.models import register_model
from torch import nn

from conadv.trainer.models.zoo import create_model


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return create_model(
            f"cifar/{name}",
            in_chans=options.get("in_chans") or 3,
            num_classes=options.get("num_classes") or 10,
        )

    entry.__name__ = f"conadv_{name}"
    entry.__module__ = __name__
    register_model(entry)


def main() -> None:
    """Register, patch, run."""
    for name in ("resnet8", "resnet18", "resnet20"):
        _register(name)
    torchvision.datasets.CIFAR10._check_integrity = lambda self: True
    torchvision.datasets.cifar.check_integrity = lambda *_: True
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()

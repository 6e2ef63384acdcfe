"""Checks for a process of their own: one that works, one that hangs, one that takes it down."""

import os
import signal
import time
from typing import Any

from conadv.lab.bench.model_check import CheckedModel


def fake_check(name: str, image_size: int, options: dict[str, Any]) -> CheckedModel:
    if name == "timm/hangs":
        time.sleep(3600)
    if name == "timm/dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return CheckedModel(name, True, image_size=image_size, options=options, parameters=os.getpid())

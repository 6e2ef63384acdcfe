"""TensorBoard: event files in the run folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from conadv.trainer.run.loggers.logger import LoggedRun


class TensorBoard:
    """Event files in ``events/``.

    Args:
        run: What is logged. Events of later steps than its own are hidden.
        options: Keyword arguments of torch's ``SummaryWriter``.
    """

    def __init__(self, run: LoggedRun, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.step + 1 if run.step else None
        given = {"log_dir": str(run.folder / "events"), "purge_step": purge, **options}
        self._writer = SummaryWriter(**given)

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add them as ``kind/name``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Add two rows of images."""
        for name, images in (("clean", clean), ("adversarial", adversarial)):
            self._writer.add_images(f"pictures/{name}", images, step, dataformats="NHWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


open_logger = TensorBoard

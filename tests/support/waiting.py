"""Waiting for processes that a test has started."""

import time
from typing import Any


def wait_for_all(context: Any, seconds: float = 150) -> None:
    """Wait for the processes of torch.multiprocessing; none of them is left behind.

    Raises:
        TimeoutError: some have not ended in time.
    """
    try:
        deadline = time.monotonic() + seconds
        while not context.join(timeout=1):  # True once all of them are done
            if time.monotonic() > deadline:
                raise TimeoutError("The ranks wait for each other.")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()

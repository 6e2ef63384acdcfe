"""Optuna's journal, which goes on behind a line that a kill or a full disk cut short."""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

_BLOCK = 4096


class Journal(JournalFileBackend):
    """A file of one JSON object per line that many processes append to.

    Optuna's own writes behind half a line as if it were whole, and can then read neither. Here
    half a line, which nobody has ever read, is dropped by the next one who writes.

    Args:
        path: The file; created if absent.
    """

    def __init__(self, path: Path) -> None:
        self._own_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append a line for each."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()
        try:
            with self._path.open("r+b") as file:
                end = _end_of_whole_lines(file)
                try:
                    file.truncate(end)
                    file.seek(end)
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self._path, end)  # all of it or nothing
                    raise
        finally:
            self._own_lock.release()


def _end_of_whole_lines(file: Any) -> int:
    end = int(file.seek(0, os.SEEK_END))
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + int(newline) + 1
        end = begin
    return 0

"""A checksum of all of a file's bytes, behind them.

The zip format sums up its members, but not the directory that says which bytes are whose: one
flipped bit there can exchange two tensors unseen. Readers of zip files look for the directory from
the end and do not mind a few bytes more.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

MARK = b"conadv-crc32:"
_CHUNK = 1 << 24


class Sealing:
    """Writes into a file and sums up what it writes.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = 0

    def write(self, data: bytes) -> int:
        """Write, and add to the checksum."""
        self._sum = zlib.crc32(data, self._sum)
        return self._file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def finish(self) -> None:
        """Write the checksum."""
        self._file.write(MARK + self._sum.to_bytes(4, "big"))


def sealed_well(path: Path) -> bool | None:
    """Whether a file has the bytes that were written; None if it has no checksum.

    Raises:
        OSError: it cannot be read.
    """
    length = len(MARK) + 4
    left = path.stat().st_size - length
    if left < 0:
        return None
    found = 0
    with path.open("rb") as file:
        file.seek(left)
        seal = file.read(length)
        if not seal.startswith(MARK):
            return None
        file.seek(0)
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            found, left = zlib.crc32(chunk, found), left - len(chunk)
    return seal[len(MARK) :] == found.to_bytes(4, "big")

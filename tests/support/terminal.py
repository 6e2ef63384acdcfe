"""A terminal of a width, and what can be read on it."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading


class Terminal:
    """A pseudo-terminal; ``stream`` is written to, ``text`` is everything that arrived."""

    def __init__(self, width: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._pieces.append(os.read(self._master, 65536))
            except OSError:  # closed at the other end
                return

    def close(self) -> str:
        """End, and return what was written."""
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._pieces).decode()


def screen(text: str) -> list[str]:
    """The lines that a terminal shows that is wide enough for each."""
    rows, row, column = [""], 0, 0
    for piece in re.split(r"(\x1b\[[\d;?]*[A-Za-z]|[\r\n])", text):
        code = re.fullmatch(r"\x1b\[([\d;?]*)([A-Za-z])", piece)
        if code is not None and code[2] == "A":
            row -= int(code[1] or 1)
        elif code is not None and code[2] == "K":
            rows[row] = "" if code[1] == "2" else rows[row][:column]
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif code is None:
            line = rows[row].ljust(column)
            rows[row] = line[:column] + piece + line[column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in rows]

"""Runs the Python blocks of a page as one program: `python run_page.py PAGE`.

Each block keeps its line numbers, so that a traceback points into the page.
"""

import gc
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.nn.functional  # before a page makes a group, which it would hold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.markdown import blocks


def stay_on_this_machine() -> None:
    """Refuse every connection but those to this machine: documentation must run offline."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"documentation runs offline, but asked for {address[0]}")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign, assignment]


def program(page: Path) -> str:
    """The page's code, every block at its own lines."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and block.no_run is None:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


def use_one_thread_and_no_code_generator() -> None:
    """Make torch cheap: blocks that compile are traced and run, without a C++ compiler."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    compile_ = torch.compile

    def traced(model: Any = None, **options: Any) -> Any:
        return compile_(model, **{**options, "backend": "eager"})

    torch.compile = traced


if __name__ == "__main__":
    page = Path(sys.argv[1])
    stay_on_this_machine()
    use_one_thread_and_no_code_generator()
    names = {"__name__": "__main__"}
    exec(compile(program(page), str(page), "exec"), names)
    names.clear()
    gc.collect()  # gloo's threads end with the last wrapper, and not while the interpreter does

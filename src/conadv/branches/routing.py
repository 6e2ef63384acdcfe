"""Which rows of the batch in flight belong to which branch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from conadv.branches.recomputation import checkpoint_frame

Layout = tuple[tuple[str, int], ...]
"""((branch, images), ...) in the order of the rows of a batch; -1 images: all of them."""


class Router:
    """Where the rows of the batch in flight go. One instance is shared by all split layers."""

    def __init__(self, branches: tuple[str, ...]) -> None:
        self.branches = branches
        self._clear()

    def _clear(self) -> None:
        self.layout: Layout | None = None
        """The layout in force, or None outside every block."""
        self.last: Layout | None = None
        """The layout of the last forward pass."""
        self.seen: set[Layout] = set()
        """Those of reentrant checkpoints' forwards that a backward may still run again."""
        self._pass = -1
        self.ambiguous = False
        """Whether the next backward belongs to several forward passes of different layouts."""
        self._blocks: list[list[Layout]] = []

    # Routing belongs to calls in flight, not to the model: a copy starts without any.
    def __getstate__(self) -> dict[str, Any]:
        return {"branches": self.branches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.branches = state["branches"]
        self._clear()

    def parse(self, layout: str | Sequence[tuple[str, int]] | None) -> Layout:
        """Check a layout and drop its empty parts.

        Raises:
            ValueError: an unknown branch, a number of images that is none, or no images at all.
        """
        if layout is None:
            layout = self.branches[0]
        if isinstance(layout, str):
            self._check_branch(layout)
            return ((layout, -1),)
        if isinstance(layout, Mapping):
            layout = list(layout.items())
        parts = []
        for part in layout:
            if isinstance(part, str) or len(part) != 2:
                raise ValueError(f"{part!r} in a layout: give (branch, number of images) pairs.")
            name, count = part
            self._check_branch(name)
            if isinstance(count, bool) or not hasattr(count, "__index__") or int(count) < 0:
                raise ValueError(f"branch {name!r} was given {count!r} images: give 0 or more.")
            parts.append((name, int(count)))
        parsed = tuple((name, count) for name, count in parts if count)
        if not parsed:
            raise ValueError("The layout has no images: give at least one branch with some.")
        return parsed

    def _check_branch(self, name: str) -> None:
        if name not in self.branches:
            raise ValueError(
                f"branch {name!r}: the model's branches are {', '.join(self.branches)}."
            )

    def enter(self, layout: Layout) -> list[Layout]:
        """Put `layout` in force; hand what is returned to `leave`."""
        block = [layout]
        self._blocks.append(block)
        self.layout = layout
        return block

    def leave(self, block: list[Layout]) -> None:
        """End a block. In any order: two suspended generators may end theirs crosswise."""
        self._blocks = [other for other in self._blocks if other is not block]
        self.layout = self._blocks[-1][0] if self._blocks else None

    def forget(self) -> None:
        """A new round begins: no backward of an earlier forward pass is to come."""
        self.seen.clear()

    def current(self) -> Layout:
        """The layout in force; without one, the plain branch takes everything.

        Activation checkpointing runs the forward again *during the backward*, when the routing
        block has ended. Without reentrant autograd it is told then which layout it had; a
        reentrant one gets the layout of the last forward, if there was but one.

        Raises:
            RuntimeError: a forward is run again, and several layouts may be meant.
        """
        plain = ((self.branches[0], -1),)
        if torch.compiler.is_compiling():
            return self.layout or plain
        if torch._C._current_graph_task_id() == -1:  # not inside a backward
            self.last = layout = self.layout or plain
            if self._pass != -1:  # a backward has run forwards again: they are done with
                self._pass = -1
                self.seen.clear()
            if not torch.is_grad_enabled() and _in_function():
                self.seen.add(layout)
            self._route_recomputation(layout)
            return layout
        if self.layout is not None:
            return self.layout
        self._pass = torch._C._current_graph_task_id()
        if self.ambiguous or len(self.seen) > 1:
            raise RuntimeError(
                "Activation checkpointing runs the forward again during the backward, where it "
                "cannot be told which of several forwards is meant, routed in different ways: use "
                "checkpoint(..., use_reentrant=False), or one forward per backward "
                "(Adversary(..., forward='joint'))."
            )
        return self.last or plain

    def _route_recomputation(self, layout: Layout) -> None:
        """Let the checkpoint that this forward runs in, if any, run again with `layout`.

        Where a release of torch hides the checkpoint, `last` has to do.
        """
        frame = checkpoint_frame()
        if frame is not None and not isinstance(frame.recompute_fn, _Routed):
            frame.recompute_fn = _Routed(frame.recompute_fn, self, layout)


def _in_function() -> bool:
    """Whether an autograd function runs this that will have a backward: a reentrant checkpoint."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("ctx",):
            return bool(getattr(frame.f_locals["ctx"], "next_functions", ()))
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Routed:
    """A checkpoint's function, run with the layout that it had the first time."""

    def __init__(self, function: Callable[..., Any], router: Router, layout: Layout) -> None:
        self.function = function
        self.router = router
        self.layout = layout

    def __call__(self, *arguments: Any) -> Any:
        block = self.router.enter(self.layout)
        try:
            return self.function(*arguments)
        finally:
            self.router.leave(block)


def rows_per_image(rows: int, layout: Layout) -> int:
    """How many rows belong to one image: windowed attention folds several into one.

    Raises:
        ValueError: the rows are no multiple of the layout's images.
    """
    images = sum(count for _, count in layout)
    if rows % images or not rows:
        parts = ", ".join(f"{count} {branch}" for branch, count in layout)
        raise ValueError(
            f"The batch has {rows} rows, but it was routed as {parts}, {images} images in all: "
            "route exactly the images that the model is given."
        )
    return rows // images

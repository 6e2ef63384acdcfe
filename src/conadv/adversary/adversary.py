"""The object a user holds: mixes the batch, gives the loss, keeps what is pending."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from conadv._tree import map_tensors, rows
from conadv.adversary.checks import (
    check_branch,
    check_model,
    checking,
    warn_of_zeros,
    warn_unsplit,
)
from conadv.adversary.mixing import (
    Part,
    find_distributed,
    finds_unused,
    forward_joint,
    forward_separate,
    is_fully_sharded,
    mean_loss,
    parameters_without_images,
    weights_of,
    why_joint,
    with_zero_gradients,
)
from conadv.adversary.read_ahead import ReadAhead
from conadv.adversary.round import Diagnostics, RoundState, Streams
from conadv.attack import Attack, Criterion
from conadv.attack.checks import check_images, check_rows
from conadv.attack.forward import BareForward
from conadv.attack.pixels import ordinary
from conadv.branches.branches import find_routers
from conadv.schedules import Schedule, resolve_schedule

__all__ = ["Adversary", "Diagnostics"]

PREVIEW_IMAGES = 16
"""How many of the last copies `Adversary.preview` holds."""
ZERO_CHECK_EVERY = 100
"""Rounds between two looks at the share of zero gradients: each waits for the device."""


class Adversary:
    """Concurrent adversarial learning for a training loop of your own.

    Each round trains on the images given plus adversarial copies, in one loss: a weighted mean of
    the clean and the adversarial mean loss, each through its own normalisation branch (ConAdv,
    ICLR 2022, Algorithm 1). Where the copies come from is the schedule's affair.

    Args:
        model: split with `split_norms` or without batch norm; bare, in DDP, after `fully_shard`, or
            compiled.
        attack: what one adversarial step is.
        schedule: a name (``"vanilla"``, ``"sequential"``, ``"lookahead"``, ``"recycled"``,
            ``"noise"``) or a schedule object.
        seed: of the attack's own random stream (random starts, targets, dropout inside the
            attack). Ranks of a process group draw differently.
        forward: ``"joint"``: one forward over the mixed batch. ``"separate"``: one forward per
            branch, the same gradient for separate statistics; it saves the split layers a copy of
            their activations and suits devices that a part of the batch already keeps busy.
            ``"auto"``: separate on a CPU if the statistics are separate, otherwise joint; joint
            in DistributedDataParallel and `fully_shard` too, whose every forward communicates:
            ranks of which one has no copies would wait for each other.
        clean_branch: name of the branch for the images given; None: the model's first.
        adversarial_branch: name of the branch for the copies.
        track_agreement: measure how well stale perturbations agree with fresh ones, at the cost
            of an attack per round. An attribute: switch it on for the rounds you want.

    Raises:
        ValueError: the model has no parameters, uninitialised ones or no such branch; an unknown
            schedule; an attack that the schedule cannot serve.

    Example:
        >>> adversary = Adversary(model, Attack(4 / 255, mean=MEAN, std=STD), schedule="recycled")
        >>> for images, labels in adversary.batches(loader):
        ...     loss = adversary.loss(images, labels, criterion)
        ...     loss.backward()
        ...     adversary.collect()
        ...     optimizer.step()
        ...     optimizer.zero_grad(set_to_none=True)
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        schedule: str | Schedule = "recycled",
        *,
        seed: int = 0,
        forward: Literal["auto", "joint", "separate"] = "auto",
        clean_branch: str | None = None,
        adversarial_branch: str = "adversarial",
        track_agreement: bool = False,
    ) -> None:
        if forward not in ("auto", "joint", "separate"):
            raise ValueError(f"forward={forward!r}: allowed are 'auto', 'joint' and 'separate'.")
        self.model = model
        self._bare = BareForward(model)
        self._routers = find_routers(self._bare.module)
        check_model(self._bare.module)
        self.schedule = resolve_schedule(schedule)
        names = self._routers[0].branches if self._routers else ("clean",)
        self.clean_branch = clean_branch or names[0]
        self.adversarial_branch = adversarial_branch
        check_branch(self._routers, self.clean_branch, "clean_branch")
        self.attack = self.schedule.resolve(attack, self.clean_branch, self.adversarial_branch)
        if self.schedule.name != "vanilla":  # which needs no more than one branch
            check_branch(self._routers, adversarial_branch, "adversarial_branch")
            check_branch(self._routers, self.attack.branch, "Attack(branch=...)")
        if not self._routers and self.schedule.name != "vanilla":
            warn_unsplit(self._bare.module)
        must_join = why_joint(model)
        if forward == "separate" and must_join is not None:
            raise ValueError(f"forward='separate' {must_join}: use forward='joint'.")
        self.forward = forward
        sharded = is_fully_sharded(model)
        communicates = sharded or find_distributed(model) is not None
        self._prefers_joint = must_join is not None or communicates or not self._routers
        self.track_agreement = track_agreement
        self.progress = 0.0
        """Share of training done, in [0, 1]: set it each step if share or weight follow it."""
        self.compute = 0.0
        """Total cost so far, in units of one forward and backward over one image."""
        self.images = 0
        """Fresh images given so far."""
        self.key: int | None = None
        """Names the round in the attack's random stream; None: its own count and the rank's number.
        Set it to the micro-batch's place in the run, and any number of devices draws the same."""
        self.diagnostics = Diagnostics()
        self.preview: tuple[Tensor | None, Tensor, Any] | None = None
        """(clean images or None, their copies, labels) of up to 16 of the last copies."""
        # fully_shard gathers and frees the weights for one pass at a time, on one stream.
        self._streams = Streams(seed, beside=not sharded)
        self._rounds = 0
        self._round: RoundState | None = None
        self._ahead = ReadAhead(self.schedule.reads_ahead)
        self._checked = False
        # A schedule keeps what is pending; two owners would train on each other's copies.
        if self.schedule.bound:
            raise ValueError("This schedule object belongs to another Adversary: make a new one.")
        self.schedule.bound = True

    @property
    def seed(self) -> int:
        """Of the attack's own random stream."""
        return self._streams.seed

    # -- the loop ------------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Pass the loader's batches through; lookahead reads tau batches ahead on the way.

        Yields what the loader yields. With lookahead a batch must begin with (images, labels) as
        the model sees them: anything that is done to images inside the loop (moving to the
        device aside) has to happen before, in the loader. Each batch is for one round: with
        gradient accumulation the loader hands over the micro-batches. Nothing can be seen beyond
        the loader's end, so the next loader's first tau rounds have no copies: a loader over the
        whole training loses none between epochs.

        Raises:
            ValueError: lookahead, and a batch is not a sequence that begins with images, labels.
        """
        return self._ahead.batches(loader)

    def peek(self, images: Tensor, labels: Any) -> None:
        """Show lookahead the batch of tau rounds later, where `batches` cannot wrap the loader.

        Before each round's `collect`; without it a round prepares no copies.
        """
        self._ahead.show((images, labels))

    def fresh_images(self, total: int) -> int:
        """How many images the loader should give so that a step's budget is `total` images."""
        return self.schedule.fresh_images(total)

    def loss(
        self,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        *,
        fraction: float = 1.0,
        views: Mapping[str, tuple[Tensor, Any]] | None = None,
    ) -> Tensor:
        """Loss of the images and of the adversarial copies that are due, ready for backward.

        Called again before `collect` (by an optimizer's closure, or after an exception) it begins
        the same round anew: the same copies, the same random numbers.

        Args:
            images: clean images, standardised, shape (N, C, H, W).
            labels: what `criterion` takes: integers, probabilities, tuples of tensors.
            criterion: ``criterion(outputs, labels)`` -> mean loss over the images it is given.
            fraction: factor on the loss. With gradient accumulation the images of this
                micro-batch over the images of the whole step, so that every image counts the
                same, also in a ragged last micro-batch.
            views: further views, {branch: (images, labels)}, each through its own branch.

        Returns:
            0-dim tensor: the weighted mean over all parts, times `fraction`. Parameters of
            branches that have no images in this round get a gradient of zero.

        Raises:
            ValueError: images are not floating point, labels of another length or out of range,
                or a criterion that does not return one number.
            RuntimeError: lookahead, and a second round on one batch of `batches`.
        """
        check_images(images)
        check_rows(images, labels)
        images, labels = ordinary(images), map_tensors(ordinary, labels)
        self._ahead.begin_round()
        if self._round is not None:  # begun anew: what it cost was paid
            self.compute += self._round.compute
            self._round = None
        current = RoundState(
            self._bare,
            self.attack,
            self._streams,
            self._rounds if self.key is None else self.key,
            self.key is None,
            images,
            labels,
            criterion if self._checked else checking(criterion),
            self.progress,
            self.track_agreement,
            self._ahead.future,
        )
        current.copies = self.schedule.copies(current)
        current.parts = parts = self._parts(current, views)
        if self._is_joint(images):
            outputs = forward_joint(self.model, parts)
        else:
            outputs = forward_separate(self.model, parts, self._routers)
        weights = weights_of(parts, self.schedule.weight_at(self.progress))
        loss, current.losses = mean_loss(parts, outputs, weights, current.criterion)
        absent = self._without_images(parts)
        if finds_unused(self.model):
            current.unused = absent
        else:
            loss = with_zero_gradients(loss, absent)
        current.compute += current.images_trained
        current.outputs = map_tensors(lambda tensor: tensor.detach(), outputs[0])
        self.diagnostics = Diagnostics(
            clean_loss=current.mean_loss(adversarial=False),
            adversarial_loss=current.mean_loss(adversarial=True),
            zero_share=current.zero_share,
            images=current.images_trained,
            compute=current.compute,
            outputs=current.outputs,
        )
        self._round, self._checked = current, True
        return loss * fraction if fraction != 1.0 else loss

    def collect(self) -> None:
        """Take the input gradients and prepare the copies of later rounds.

        Call it after `backward` and before the optimizer's step.

        Raises:
            RuntimeError: loss() was not called, or backward has not run.
        """
        current = self._round
        if current is None:
            raise RuntimeError("collect() without a loss(): call loss(), backward(), collect().")
        current.take_gradients()
        with current.autocast():
            agreement = current.agreement() if self.track_agreement else None
            self.schedule.collect(current)
        self.diagnostics = replace(
            self.diagnostics,
            zero_share=current.zero_share,
            agreement=agreement,
            compute=current.compute,
        )
        self._keep_preview(current)
        self._warn_of_zeros(current)
        self.images += len(current.images)
        self._end_round()

    def skip(self) -> None:
        """Instead of `collect`, where the round is void (NaN loss): nothing of it is kept.

        Without a `loss` before it, a round is left out altogether.
        """
        self.schedule.skip()
        self._end_round()

    def idle(self) -> None:
        """A round without images, in place of `loss` and `collect`: nothing is trained or attacked.

        For a device that has fewer micro-batches in a short last step than others. Lookahead drops
        what was made for this round; recycled keeps what is pending.

        Raises:
            RuntimeError: in the middle of a round.
        """
        if self._round is not None:
            raise RuntimeError("idle() after loss(): finish the round with collect() or skip().")
        self.schedule.idle()
        self._end_round()

    def _end_round(self) -> None:
        if self._round is not None:
            self.compute += self._round.compute
        self._round = None
        self._ahead.end_round()
        self._rounds += 1

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, pending copies included.

        Tensors, numbers, strings, lists and dicts only: loads with ``weights_only=True``. Take it
        between two rounds.
        """
        return {
            "version": 1,
            "schedule": self.schedule.name,
            "state": self.schedule.state_dict(),
            "progress": self.progress,
            "compute": self.compute,
            "images": self.images,
            "rounds": self._rounds,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; pending copies go to the model's device.

        Raises:
            ValueError: the state is of another schedule, or of another version of the library.
        """
        if state.get("version") != 1:
            raise ValueError(
                f"Adversary state of version {state.get('version')!r}: this release reads "
                "version 1."
            )
        if state["schedule"] != self.schedule.name:
            raise ValueError(
                f"The state is of schedule {state['schedule']!r}, this adversary runs "
                f"{self.schedule.name!r}: continue with the schedule that the run began with."
            )
        device = next(self._bare.module.parameters()).device
        self.schedule.load_state_dict(state["state"], device)
        self.progress = float(state["progress"])
        self.compute = float(state["compute"])
        self.images = int(state["images"])
        self._rounds = int(state["rounds"])
        self._streams.seed = int(state["seed"])
        self._round = None

    # -- inside --------------------------------------------------------------------------------

    def _is_joint(self, images: Tensor) -> bool:
        if self.forward == "auto":
            return self._prefers_joint or images.device.type != "cpu"
        return self.forward == "joint"

    def _without_images(self, parts: list[Part]) -> list[nn.Parameter]:
        names = {name for router in self._routers for name in router.branches}
        if names <= {part.branch for part in parts}:
            return []
        return parameters_without_images(self._bare.module, parts)

    def _parts(
        self, current: RoundState, views: Mapping[str, tuple[Tensor, Any]] | None
    ) -> list[Part]:
        wants = self.schedule.wants_gradient(self.progress)
        parts = [Part(self.clean_branch, current.images, current.labels, False, wants)]
        for branch, (images, labels) in (views or {}).items():
            check_images(images)
            check_rows(images, labels)
            labels = map_tensors(ordinary, labels)
            parts.append(Part(branch, ordinary(images), labels, False))
        refine = self.schedule.wants_copy_gradients()
        for copies in current.copies:
            parts.append(Part(self.adversarial_branch, copies.images, copies.labels, True, refine))
        return parts

    def _keep_preview(self, current: RoundState) -> None:
        if not current.copies:
            return
        copies = current.copies[-1]
        few = min(PREVIEW_IMAGES, len(copies))
        origins = None if copies.origins is None else copies.origins[:few].clone()
        labels = rows(copies.labels, 0, few, len(copies))
        self.preview = (origins, copies.images[:few].clone(), labels)

    def _warn_of_zeros(self, current: RoundState) -> None:
        """Now and then look at the zero share: an attack that went out must not stay unseen."""
        if current.zero_share is None or self._rounds % ZERO_CHECK_EVERY:
            return
        warn_of_zeros(float(current.zero_share))

"""The object a user holds: mixes the batch, gives the loss, keeps what is pending."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conadv._tree import joined, map_tensors
from conadv.adversary.after_backward import (
    entrance,
    finished_steps,
    queue_last,
    when_backward_ends,
)
from conadv.adversary.checks import (
    check_branch,
    check_model,
    check_optimizers,
    no_criterion,
    warn_unsplit,
    warn_unwrapped,
)
from conadv.adversary.mixing import (
    as_sum,
    beside_all,
    concatenated,
    find_distributed,
    finds_unused,
    forward_at,
    forward_joint,
    forward_separate,
    is_fully_sharded,
    mean_loss,
    weights_of,
    why_joint,
    with_zero_gradients,
)
from conadv.adversary.notices import Notices, TrainedBranches
from conadv.adversary.read_ahead import ReadAhead
from conadv.adversary.round import Diagnostics, Mixed, Streams
from conadv.adversary.rounds import Rounds
from conadv.attack import Attack, Criterion
from conadv.attack.forward import BareForward
from conadv.branches.branches import find_routers
from conadv.schedules import Schedule, resolve_schedule


class Adversary(Rounds):
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
        auto_collect: call `collect` at the end of each backward pass, from within it: then it
            needs no call. A loss that an optimizer's closure takes again, of the very tensor
            and before the step is over, begins the same round anew, as it does otherwise.
        loss: ``"mean"``: the weighted mean over images and copies. ``"sum"``: that mean over the
            weight of the images given, so that their own mean loss counts as in ordinary training
            and the copies' is added to it (the sum that the paper prints). With one copy per
            image it is twice the mean: see "Mean or sum" in docs/method.md.

    Raises:
        ValueError: the model has no parameters, uninitialised ones or no such branch; an unknown
            schedule or loss; an attack that the schedule cannot serve.

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
        auto_collect: bool = False,
        loss: Literal["mean", "sum"] = "mean",
    ) -> None:
        if loss not in ("mean", "sum"):
            raise ValueError(f"loss={loss!r}: allowed are 'mean' and 'sum'.")
        if forward not in ("auto", "joint", "separate"):
            raise ValueError(f"forward={forward!r}: allowed are 'auto', 'joint' and 'separate'.")
        self.model = model
        self._bare = BareForward(model, attack.at)
        self._routers = find_routers(self._bare.module)
        check_model(self._bare.module)
        self.schedule = resolve_schedule(schedule)
        self.sums = loss == "sum"
        """Whether `loss` adds the copies' mean loss to the images' own."""
        names = self._routers[0].branches if self._routers else ("clean",)
        self.clean_branch = clean_branch or names[0]
        self.adversarial_branch = adversarial_branch
        check_branch(self._routers, self.clean_branch, "clean_branch")
        self.attack = self.schedule.resolve(attack, self.clean_branch, self.adversarial_branch)
        if self.schedule.makes_copies:
            check_branch(self._routers, adversarial_branch, "adversarial_branch")
            check_branch(self._routers, self.attack.branch, "Attack(branch=...)")
            warn_unsplit(self._bare.module)
        warn_unwrapped(model)
        must_join = why_joint(model)
        if forward == "separate" and must_join is not None:
            raise ValueError(f"forward='separate' {must_join}: use forward='joint'.")
        if attack.at is not None and (forward == "separate" or self.schedule.reads_ahead):
            raise ValueError(
                f"at={attack.at!r} goes with one forward over the whole batch, and not with "
                "lookahead: use forward='auto' or 'joint', and schedule='recycled' or 'sequential'."
            )
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
        self._round = None
        self._again = None
        self._notices = Notices()
        self._trained = TrainedBranches(self._bare.module if self.schedule.makes_copies else None)
        self._ahead = ReadAhead(self.schedule.reads_ahead)
        self.auto_collect = auto_collect
        if auto_collect:
            finished_steps.watch()
        self._checked = False
        # A schedule keeps what is pending; two owners would train on each other's copies.
        if self.schedule.bound:
            raise ValueError("This schedule object belongs to another Adversary: make a new one.")
        self.schedule.bound = True

    def check(self, *optimizers: torch.optim.Optimizer) -> None:
        """Raise ValueError where the optimizers train one branch of a layer and not another.

        An optimizer made before `split_norms` does not know the new parameters: the adversarial
        branch would never learn. Without this call a warning says so after the first step.

        Args:
            optimizers: all that train the model, together.
        """
        check_optimizers(self._bare.module, optimizers)

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
        images: Any,
        labels: Any,
        criterion: Criterion,
        *,
        fraction: float = 1.0,
        views: Mapping[str, tuple[Tensor, Any]] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of the images and of the adversarial copies that are due, ready for backward.

        Called again before `collect` (by an optimizer's closure, or after an exception) it begins
        the same round anew: the same copies, the same random numbers.

        Args:
            images: clean images, standardised, shape (N, C, H, W); with ``Attack(at=...)`` the
                model's inputs: a tensor, a tuple of positional ones or a dict of keywords. Copies
                of another length than theirs are padded together with them (see `docs/loop.md`).
            labels: what `criterion` takes: integers, probabilities, tuples of tensors.
            criterion: ``criterion(outputs, labels)`` -> mean loss over the images it is given, by
                itself, as ``(loss, logs)`` or in a dict as ``"loss"``.
            fraction: factor on the loss. With gradient accumulation the images of this
                micro-batch over the images of the whole step: every micro-batch then counts by
                its images, also a ragged last one. Its copies share that weight: beside more or
                fewer copies than images, those of a micro-batch of another size, an image counts
                a little less or more.
            views: further views, {branch: (images, labels)}, each through its own branch.
            mask: with ``Attack(at=...)``: 1 where the layer's output may be perturbed, 0 where
                not, shape (N, length); None: the inputs' ``attention_mask``, if they have one.

        Returns:
            0-dim tensor: the weighted mean (or sum) over all parts, times `fraction`. Parameters of
            branches that have no images in this round get a gradient of zero.

        Raises:
            ValueError: images are not floating point, labels of another length or out of range,
                or a criterion that does not return one number; a sum, and the copies have all
                the weight.
            RuntimeError: lookahead, and a second round on one batch of `batches`.
        """
        current = self._begin(images, labels, criterion, views, mask)
        parts, layer = current.parts, self._bare.layer
        if layer is not None:
            outputs, point, mask = forward_at(self.model, parts, layer)
        elif self._is_joint(current.images):
            outputs = forward_joint(self.model, parts)
        else:
            outputs = forward_separate(self.model, parts, self._routers)
        weights = weights_of(parts, self.schedule.weight_at(self.progress))
        weights = as_sum(weights) if self.sums else weights
        loss, current.losses = mean_loss(parts, outputs, weights, current.criterion)
        absent = self._without_images(parts)
        if finds_unused(self.model):
            current.unused = absent
        else:
            loss = with_zero_gradients(loss, absent)
        current.compute += current.images_trained
        current.outputs = map_tensors(lambda tensor: tensor.detach(), outputs[0])
        self.diagnostics = current.diagnostics()
        self._round, self._checked = current, True
        if layer is not None:
            current.keep_adding(layer, point, mask)
        loss = loss * fraction if fraction != 1.0 else loss
        when_backward_ends(loss, current.began, partial(self._backward_ended, current))
        return loss

    def mix(
        self,
        images: Any,
        labels: Any,
        criterion: Criterion | None = None,
        *,
        views: Mapping[str, tuple[Tensor, Any]] | None = None,
        mask: Tensor | None = None,
    ) -> Mixed:
        """The batch to train on, for a model that computes its own loss, or a step not to touch.

        Its rows go through their branches, whoever calls the model and however it is wrapped,
        until `collect` (with ``auto_collect=True``: until the backward pass is over). The rest is
        the trainer's: one forward over the whole batch, a loss that is a *mean over its rows*,
        backward. Branches without rows get gradients of zero.

        Args:
            images: see `loss`.
            labels: see `loss`; those of the copies are put below them, tensor by tensor.
            criterion: for schedules that attack (sequential, lookahead; also for the agreement).
                An attack runs under the autocast setting in force at this call.
            views: see `loss`.
            mask: see `loss`. The inputs of all rows are then ``Mixed.images``, and the layer is
                perturbed in the trainer's forward.

        Raises:
            ValueError: see `loss`; also a sum, or a weight of the schedule's own, neither of
                which a mean over rows can have, ``forward="separate"``, a schedule that attacks
                without a criterion, and labels that cannot be put below one another.
        """
        if self.forward == "separate":
            raise ValueError("mix() is one batch for one forward: use forward='joint' or 'auto'.")
        if self.schedule.weight_at(self.progress) is not None and self.schedule.makes_copies:
            raise ValueError(
                "mix() gives rows for a loss that is the mean over all of them: with a schedule "
                "that has a weight, use loss(images, labels, criterion), or leave weight at None."
            )
        if self.sums:
            raise ValueError("mix() gives rows for a loss that is their mean: use loss='mean'.")
        current = self._begin(images, labels, criterion or no_criterion, views, mask)
        parts = current.parts
        try:
            together = joined([p.labels for p in parts], [len(p.images) for p in parts])
        except ValueError as error:
            raise ValueError(
                f"The labels of the images and of their copies cannot be mixed: {error}. Give "
                "labels with one row per image, or use loss(images, labels, criterion)."
            ) from None
        rows_, layout = concatenated(parts)
        current.route(self._routers, layout)
        self._round = current

        def arrived(gradient: Tensor) -> None:
            current.began()
            if any(part.wants_gradient for part in parts):
                rows_.grad = gradient if rows_.grad is None else rows_.grad + gradient
            queue_last(partial(self._backward_ended, current))

        mixed = entrance(rows_, self._without_images(parts), arrived)
        current.compute += current.images_trained
        self.diagnostics = current.diagnostics()
        if self._bare.layer is None:
            return Mixed(mixed, together, len(current.images))
        given = beside_all(parts)
        current.keep_adding(self._bare.layer, mixed, given.mask)
        return Mixed(given.inputs, together, len(current.images))

    def _is_joint(self, images: Tensor) -> bool:
        if self.forward == "auto":
            return self._prefers_joint or images.device.type != "cpu"
        return self.forward == "joint"

"""What every schedule has: a share, a weight, and the two moments at which it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from conadv._tree import map_tensors, rows
from conadv.schedules.facts import Setting, Work

if TYPE_CHECKING:  # a recipe is read, and its schedule looked up, without torch
    import torch
    from torch import Tensor

    from conadv.attack import Attack, Perturbed

Scheduled = float | Callable[[float], float]
"""A number, or a function of progress (0 at the first step, 1 at the end) that returns one."""


class PiecewiseLinear:
    """A number that follows straight lines over training.

    Args:
        points: [(progress, value), ...], progress in [0, 1] and not decreasing. Before the first
            and after the last point the value stays. Two points of equal progress make a jump;
            at the jump the later value holds.

    Example:
        >>> weight = PiecewiseLinear([(0.0, 0.5), (0.6, 0.5), (0.6, 0.0)])  # off for the last 40 %
        >>> weight(0.3), weight(0.6)
        (0.5, 0.0)
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.points = [(float(p), float(v)) for p, v in points]
        positions = [p for p, _ in self.points]
        if not positions or positions != sorted(positions):
            raise ValueError(f"points={points!r}: give (progress, value) pairs in rising order.")
        if positions[0] < 0 or positions[-1] > 1:
            raise ValueError(f"points={points!r}: progress runs from 0 to 1.")

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        before = [point for point in self.points if point[0] <= progress]
        after = [point for point in self.points if point[0] > progress]
        if not before:
            return self.points[0][1]
        if not after:
            return before[-1][1]
        (p0, v0), (p1, v1) = before[-1], after[0]
        return v0 + (v1 - v0) * (progress - p0) / (p1 - p0)

    def __repr__(self) -> str:
        return f"PiecewiseLinear({self.points})"


def value_at(value: Scheduled, progress: float, name: str, high: float = 1.0) -> float:
    """Evaluate a scheduled number and check its range."""
    number = float(value(progress) if callable(value) else value)
    if not 0 <= number <= high:
        raise ValueError(f"{name}={number:g} at progress {progress:g}: allowed is 0 to {high:g}.")
    return number


@dataclass
class Copies:
    """Adversarial copies that are trained on in one round."""

    images: Tensor
    labels: Any
    origins: Tensor | None = None
    """The clean images they were made from, where somebody needs them."""
    age: int = 0
    """Gradient steps they have taken in the recycled pipeline."""
    scales: Tensor | None = None
    """Factors on their radii, where each has its own and takes further steps."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def copies(self, current: Round) -> Copies:
        """The copies themselves: of what waits for its round, they are complete."""
        return self

    def drop_unneeded(self) -> None:
        """Drop nothing: all of them are decided."""

    def tensors(self) -> list[Tensor]:
        """Those of images, labels and origins."""
        found: list[Tensor] = []
        map_tensors(found.append, (self.images, self.labels, self.origins))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {
            "images": self.images,
            "labels": self.labels,
            "origins": self.origins,
            "age": self.age,
            "scales": self.scales,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> Copies:
        """The inverse of `state_dict`, on `device`."""
        moved = map_tensors(lambda tensor: tensor.to(device), dict(state))
        return cls(**moved)


def own_labels(labels: Any, count: int, total: int) -> Any:
    """The labels of the first `count` images, to keep: loaders may fill their tensors anew."""
    return map_tensors(lambda tensor: tensor.detach().clone(), rows(labels, 0, count, total))


class Round(Protocol):
    """What a schedule sees of one round: one loss() and its collect()."""

    images: Tensor
    labels: Any
    progress: float
    keep_origins: bool
    future: tuple[Tensor, Any] | None
    """The batch of `Schedule.reads_ahead` rounds later."""
    clean_gradient: Tensor | None
    """Gradient of the loss with respect to `images`, after the backward and on request."""
    copy_gradients: list[Tensor | None]
    """Gradients after the backward, one per element of `copies`, on request."""
    copies: list[Copies]

    @property
    def attack(self) -> Attack:
        """The attack, its branch resolved."""

    def perturb(self, images: Tensor, labels: Any) -> Perturbed:
        """Run the attack at the current weights: costs 2F per step over these images."""

    def noise(self, images: Tensor) -> Tensor:
        """Random noise of the attack's size."""

    def draw_scales(self, count: int) -> Tensor | None:
        """Radii of so many new copies, as shares of epsilon, where each has its own."""

    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream for work beside the training pass, or None on a CPU."""

    def report_zero_share(self, share: Tensor, nans: Tensor | None = None) -> None:
        """Hand a zero-gradient share to the diagnostics, and how much of it was NaN."""


class Schedule:
    """Base of the schedules. What is true of a schedule is said in its class, and nowhere else.

    One of your own derives from it and gives `copies`, and `collect` where copies are made for
    later rounds; a recipe names it as ``method.schedule: my_module:MySchedule``.

    Args:
        share: share of the images that get an adversarial copy, in [0, 1], or a function of
            progress. The first images of a batch are taken: shuffled batches make that random.
        weight: of the copies' mean loss in the total, in [0, 1], or a function of progress; the
            other images share the rest by their number. None: every image counts the same, which
            for one copy per image is the paper's equal sum of two means, divided by two.

    A schedule keeps what is pending, so it belongs to one Adversary.
    """

    name: ClassVar[str] = "schedule"
    """How recipes, states and tables call it; without one, the name of the class."""
    settings: ClassVar[Mapping[str, Setting]] = {}
    """Keyword arguments beside share and weight."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings that benchmarks and plans list as a method of their own, by its name."""
    makes_copies: ClassVar[bool] = True
    """Whether it needs an adversarial branch beside the clean one."""
    copies_at_once: ClassVar[bool] = False
    """Whether copies are made in the round that trains on them, so that the first has some too."""
    control: ClassVar[bool] = False
    """Whether its copies are made without an attack, for comparison."""
    queues_rounds: ClassVar[bool] = False
    """Whether ``state_dict()["pending"]`` holds an entry for each of the next rounds."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    def __init__(self, share: Scheduled = 1.0, weight: Scheduled | None = None) -> None:
        self.share = share
        self.weight = weight
        self.bound = False
        for progress in (0.0, 0.5, 1.0):
            self.share_at(progress)
            self.weight_at(progress)

    reads_ahead = 0
    """How many batches (rounds) ahead of the current one the schedule must see."""

    @classmethod
    def for_steps(
        cls,
        rounds: int,
        share: Scheduled | None = None,
        weight: Scheduled | None = None,
        **settings: Any,
    ) -> Self:
        """A schedule for a trainer whose steps have so many rounds.

        Args:
            rounds: Micro-batches of a step.
            share: See the class; None takes its default.
            weight: See the class.
            settings: Further arguments; those `in_steps` are counted in steps.
        """
        for name, setting in cls.settings.items():
            if setting.in_steps:
                settings[name] = rounds * settings.get(name, setting.default)
        if cls.makes_copies:  # others have none to give a share or a weight to
            settings |= {} if share is None else {"share": share}
            settings["weight"] = weight
        return cls(**settings)

    @property
    def filled_after(self) -> int:
        """Rounds before a round has as many copies as later ones."""
        return self.reads_ahead

    @classmethod
    def default_share(cls, **settings: Any) -> float:
        """The share where nobody gives one, with these settings."""
        return 1.0

    @property
    def variant(self) -> str:
        """Its name, or that of the variant whose settings it has."""
        for name, settings in self.variants.items():
            if all(getattr(self, key) == value for key, value in settings.items()):
                return name
        return self.name

    @property
    def label(self) -> str:
        """What a table calls it, counted in steps if it was made for steps of one round."""
        return self.name

    def work(self, share: float, attack_steps: int = 1) -> Work:
        """What a step goes over.

        Args:
            share: Of copies, as in `share_at`.
            attack_steps: Gradient steps of the attack.
        """
        return Work(copies=share)

    def pending_bytes(self, signs: bool) -> float:
        """Bytes that wait for later rounds, per pixel value of the copies of one round.

        Args:
            signs: Whether a sign per value says it all (`Attack.is_one_sign_step`).
        """
        return 0.0

    def share_at(self, progress: float) -> float:
        """Share of images that get a copy at this point of training."""
        return value_at(self.share, progress, "share")

    def weight_at(self, progress: float) -> float | None:
        """Weight of the copies' mean loss at this point; None: by the number of images."""
        return None if self.weight is None else value_at(self.weight, progress, "weight")

    def active(self, progress: float) -> bool:
        """Whether copies are made: not where share or weight is zero, and then nothing costs."""
        return self.share_at(progress) > 0 and self.weight_at(progress) != 0

    def count(self, images: int, progress: float) -> int:
        """How many of `images` get a copy."""
        return round(self.share_at(progress) * images) if self.active(progress) else 0

    def own_images(self, current: Round) -> tuple[Tensor, Any] | None:
        """The images of this very round that get a copy, and their labels; None for none."""
        total = len(current.images)
        count = self.count(total, current.progress)
        if count == 0:
            return None
        return current.images[:count].detach(), rows(current.labels, 0, count, total)

    def fresh_images(self, total: int) -> int:
        """How many fresh images a loader should give for a budget of `total` images per step."""
        return total

    def resolve(self, attack: Attack, clean_branch: str, adversarial_branch: str) -> Attack:
        """The attack with its branch filled in.

        Raises:
            ValueError: the schedule cannot take gradients in the way that the attack asks for.
        """
        return replace(attack, branch=attack.branch or adversarial_branch)

    def wants_gradient(self, progress: float) -> bool:
        """Whether the backward pass shall also give the clean images' gradient."""
        return False

    def wants_copy_gradients(self) -> bool:
        """Whether it shall also give the copies' own gradients."""
        return False

    def copies(self, current: Round) -> list[Copies]:
        """Copies to train on in this round. Called before the forward; changes no state."""
        return []

    def collect(self, current: Round) -> None:
        """Prepare what later rounds need. Called after the backward, before the update."""

    def skip(self) -> None:
        """The round is void (a NaN, say), or left out: drop what it would have prepared."""

    def idle(self) -> None:
        """A round without images: what is counted in rounds moves on, the rest stays."""

    def state_dict(self) -> dict[str, Any]:
        """What is pending: tensors, numbers, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what was pending, on `device`."""


class Vanilla(Schedule):
    """Ordinary training: no copies."""

    name: ClassVar[str] = "vanilla"
    makes_copies: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(share=0.0)

    def work(self, share: float, attack_steps: int = 1) -> Work:
        """The fresh images alone."""
        return Work()

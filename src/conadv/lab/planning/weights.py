"""Copies of weights in a plan: passes at moved weights, and gradients that wait."""

from dataclasses import dataclass, field

from conadv.lab.planning.job import Dealt, Method
from conadv.lab.planning.network import Network
from conadv.schedules import Work
from conadv.weights import WeightSchedule


@dataclass(frozen=True)
class WeightMethod(Method):
    """A schedule of copies of weights, on images without copies.

    A schedule that follows training counts with its largest share. `schedule` is the name in
    tables.
    """

    weights: WeightSchedule = field(default_factory=WeightSchedule)

    def __post_init__(self) -> None:
        """Nothing to check: the schedule has checked itself."""

    @property
    def work(self) -> Work:
        """What a step goes over; `attacked` are images with an ascent of their own."""
        at = max((n / 100 for n in range(101)), key=self.weights.share_at)
        share = self.weights.share_at(at) if self.weights.active(at) else 0.0
        fresh = self.weights.fresh_images(1000) / 1000
        passes = self.weights.passes(at, alone=True)
        ascents = share * self.weights.ascents
        return Work(
            fresh=fresh,
            copies=fresh * (passes - ascents - 1),
            attacked=fresh * ascents,
            views=self.views,
        )

    @property
    def ahead(self) -> bool:
        """Whether it takes gradients of later batches, beside the training pass."""
        return self.weights.reads_ahead(1) > 0

    def attack_pass(self, network: Network) -> float:
        """Operations of an ascent, per image: those of a training pass."""
        return network.train

    def attack_saved(self, network: Network) -> float:
        """Bytes that an ascent keeps for its backward pass, per image of the micro-batch."""
        return network.saved * self.attacks

    def pending(self, network: Network, dealt: Dealt) -> float:
        """Bytes that wait for later steps: gradients, and images to be trained on again."""
        images = 4.0 * network.values * self.fresh * dealt.micro_batch
        return self.weights.kept_bytes(network.matrices, dealt.rounds, images=images)

    def beside_weights(self, network: Network) -> float:
        """Bytes of the moved weights, until the backward pass is over."""
        return 4.0 * network.matrices

    @property
    def passes(self) -> int:
        """Images at moved weights and others go through the network one after the other."""
        return 2 if self.work.copies else 1

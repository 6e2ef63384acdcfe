"""One colour per method, everywhere: tables, curves, bars; in light and in dark."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Colour:
    """How a method is drawn.

    Attributes:
        light: Hex colour on a light background.
        dark: Hex colour on a dark background.
        symbol: Name of the marker (`charts.svg`), a second cue beside the colour.
    """

    light: str
    dark: str
    symbol: str


@dataclass(frozen=True)
class Family:
    """What a report knows of a schedule by its name alone: a run folder holds no code.

    Attributes:
        colour: Of its methods; None: the next free one.
        copies: Whether it trains on copies.
        attacks: Whether an attack makes them.
    """

    colour: Colour | None = None
    copies: bool = True
    attacks: bool = True


# Hues after Okabe and Ito's set for colour-blind readers, each moved to at least 4:1 contrast on
# its background. Adversarial methods have one hue each; ordinary training is grey.
FAMILIES = {
    "vanilla": Family(Colour("#59636e", "#b4bec9", "circle"), copies=False, attacks=False),
    "recycled": Family(Colour("#0969b8", "#5ab0f7", "square")),
    "recycled/fixed": Family(Colour("#00806a", "#33cba6", "diamond")),
    "sequential": Family(Colour("#bf4a00", "#ff9d5c", "triangle-up")),
    "lookahead": Family(Colour("#a0348c", "#ea93d8", "triangle-down")),
    "noise": Family(Colour("#857000", "#ddc544", "x"), attacks=False),
    "unknown": Family(attacks=False),
}
"""Colours by schedule, or schedule and image budget. Every other schedule is an adversarial one."""
_OTHERS = (
    Colour("#5b4bc4", "#aea4ff", "star"),
    Colour("#c0265f", "#ff86ac", "cross"),
    Colour("#7b4d2b", "#d3a885", "hexagon"),
    Colour("#47750f", "#a6d45c", "hourglass"),
    Colour("#2f4f8f", "#8fb0f0", "star-square"),
    Colour("#9a3412", "#f5a08a", "bowtie"),
    Colour("#0b7a8a", "#55d3e2", "pentagon"),
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class MethodKey:
    """What makes two runs share a colour: the table's name, the schedule and the image budget."""

    method: str
    schedule: str
    budget: str = "extra"

    @property
    def family(self) -> Family:
        """What is known of its schedule."""
        usual = FAMILIES.get(self.schedule, Family())
        return FAMILIES.get(f"{self.schedule}/{self.budget}", usual)


def colours(methods: Iterable[tuple[MethodKey, int | None]]) -> dict[MethodKey, Colour]:
    """Give every method its colour.

    A method whose schedule is known has the colour of that schedule, in every report alike. Two
    methods of one schedule share it if they never meet at one batch size, where the line style
    tells them apart; otherwise the later one, like every method with a schedule of its own, takes
    the next free colour.

    Args:
        methods: Each method with a batch size at which it was run, in the order of the report.
    """
    batches: dict[MethodKey, set[int | None]] = {}
    for key, batch in methods:
        batches.setdefault(key, set()).add(batch)
    chosen: dict[MethodKey, Colour] = {}
    for key, own in batches.items():
        wanted = key.family.colour
        rivals = {colour for other, colour in chosen.items() if own & batches[other]}
        kin = {chosen[other] for other in chosen if other.schedule == key.schedule}
        taken = set(chosen.values()) - kin | rivals
        chosen[key] = wanted if wanted and wanted not in taken else _next_free(chosen)
    return chosen


def _next_free(chosen: dict[MethodKey, Colour]) -> Colour:
    taken = set(chosen.values())
    every = (*_OTHERS, *(family.colour for family in FAMILIES.values() if family.colour))
    # When the hues have run out, hollow symbols tell a method from the one with its colour.
    hollow = (replace(colour, symbol=f"{colour.symbol}-open") for colour in every)
    for colour in (*every, *hollow):
        if colour not in taken:
            return colour
    return every[len(chosen) % len(every)]


def colour_of(palette: Mapping[MethodKey, Colour], key: MethodKey) -> str:
    """A method's colour as CSS: the page has it once for light and once for dark."""
    return f"var(--m{list(palette).index(key)})"


def dashes(batches: Iterable[int | None]) -> dict[int | None, str]:
    """A line style per batch size: solid for the largest, broken ones for smaller batches."""
    ordered = sorted(set(batches), key=lambda batch: -1 if batch is None else -batch)
    return {batch: DASHES[i % len(DASHES)] for i, batch in enumerate(ordered)}

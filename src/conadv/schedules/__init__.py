"""When input gradients are taken: the heart of the project.

Each schedule answers two questions at every step: which adversarial copies are trained on now,
and what is prepared for later. They differ in which weights the copies were made with and in what
that costs, counted in forwards F over the images (one backward with respect to the inputs or to
the weights costs F as well):

============  ==========================  ===========  =======================
schedule      copies are made with        extra cost   gradients in sequence
============  ==========================  ===========  =======================
vanilla       (none)                      0            1
sequential    the current weights         5F           2
lookahead     weights tau steps old       5F           1
recycled      weights one step old        3F or 0      1
noise         (random signs)              3F           1
============  ==========================  ===========  =======================
"""

from collections.abc import Mapping
from typing import Any

from conadv._words import find_named
from conadv.schedules.base import Copies, PiecewiseLinear, Round, Schedule, Vanilla
from conadv.schedules.facts import Setting, Work
from conadv.schedules.lookahead import Lookahead
from conadv.schedules.recycled import Recycled
from conadv.schedules.sequential import Noise, Sequential

SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Vanilla, Sequential, Lookahead, Recycled, Noise)
}
"""Every schedule by its name. All else that lists schedules asks their classes."""
VARIANTS: dict[str, tuple[type[Schedule], Mapping[str, Any]]] = {
    name: (cls, settings)
    for cls in SCHEDULES.values()
    for name, settings in {cls.name: {}, **cls.variants}.items()
}
"""What benchmarks and plans list, by name: schedules, and settings that count as one."""


def find_schedule(name: str) -> type[Schedule]:
    """The class of a schedule, by its name or, one of your own, by ``module:Class``.

    Raises:
        ValueError: No such schedule.
    """
    return find_named(name, SCHEDULES, Schedule)


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule object itself, or a new one with the defaults of the name given.

    Raises:
        ValueError: no schedule of that name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    try:
        return find_schedule(schedule)()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"schedule={schedule!r}: allowed are {', '.join(SCHEDULES)}, module:Class of your own, "
            f"or a schedule object such as Recycled(share=0.5)."
        ) from error


__all__ = [
    "SCHEDULES",
    "VARIANTS",
    "Copies",
    "Lookahead",
    "Noise",
    "PiecewiseLinear",
    "Recycled",
    "Round",
    "Schedule",
    "Sequential",
    "Setting",
    "Vanilla",
    "Work",
    "find_schedule",
    "resolve_schedule",
]

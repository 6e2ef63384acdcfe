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

from conadv.schedules.base import Copies, PiecewiseLinear, Round, Schedule, Vanilla
from conadv.schedules.lookahead import Lookahead
from conadv.schedules.recycled import Recycled
from conadv.schedules.sequential import Noise, Sequential

SCHEDULES: dict[str, type[Schedule]] = {
    cls.name: cls for cls in (Vanilla, Sequential, Lookahead, Recycled, Noise)
}


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule object itself, or a new one with the defaults of the name given.

    Raises:
        ValueError: no schedule of that name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(
            f"schedule={schedule!r}: allowed are {', '.join(SCHEDULES)}, or a schedule object such "
            "as Recycled(share=0.5)."
        )
    return SCHEDULES[schedule]()


__all__ = [
    "SCHEDULES",
    "Copies",
    "Lookahead",
    "Noise",
    "PiecewiseLinear",
    "Recycled",
    "Round",
    "Schedule",
    "Sequential",
    "Vanilla",
    "resolve_schedule",
]

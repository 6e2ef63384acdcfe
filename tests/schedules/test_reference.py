"""Every schedule trains the weights that its plain loop trains."""

from collections.abc import Callable
from functools import partial

import pytest

import conadv
from conadv.schedules import SCHEDULES, Schedule
from support import reference_schedules as reference
from support.loops import ATTACK, assert_same_state, batches, network, run, sgd

PAIRS: dict[str, tuple[Callable[[], Schedule], Callable[..., None]]] = {
    "vanilla": (conadv.Vanilla, reference.vanilla),
    "sequential": (conadv.Sequential, reference.sequential),
    "lookahead": (conadv.Lookahead, partial(reference.lookahead, tau=1)),
    "lookahead, tau 3": (lambda: conadv.Lookahead(tau=3), partial(reference.lookahead, tau=3)),
    "recycled": (conadv.Recycled, reference.recycled),
    "recycled, half": (
        lambda: conadv.Recycled(share=0.5),
        partial(reference.recycled, share=0.5),
    ),
    "recycled, refine": (lambda: conadv.Recycled(refine=2), reference.refined),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_its_plain_loop(name: str) -> None:
    make, plain = PAIRS[name]
    data = batches(6)
    ours, theirs = network(), network()
    run(conadv.Adversary(ours, ATTACK, make()), sgd(ours), data)
    plain(theirs, sgd(theirs), data)
    assert_same_state(ours, theirs, rtol=1e-5, atol=1e-6)


def test_every_schedule_but_chance_has_one() -> None:
    assert {make().name for make, _ in PAIRS.values()} == set(SCHEDULES) - {"noise"}

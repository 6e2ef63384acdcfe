"""What an ascent of a later step must wait for beside the training pass, recorded without a GPU."""

import pytest
import torch
from torch import nn

from conadv.weights import Lookahead, WeightAdversary, WeightAttack
from support.loops import assert_same_state, batches, cross_entropy, network, sgd
from support.streams import BESIDE, Recorder

ATTACK = WeightAttack(0.05, centred=False)


def train(model: nn.Module, schedule: Lookahead, monkeypatch=None, steps: int = 2) -> list[str]:
    """What was recorded, where it is."""
    adversary, optimizer = WeightAdversary(model, ATTACK, schedule), sgd(model)
    recorder = monkeypatch and Recorder(monkeypatch, model, adversary._passes.streams)
    for images, labels in adversary.batches(batches(steps, size=4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adversary.loss(images, labels, cross_entropy)
        loss.backward()
        adversary.collect()
        if recorder:
            recorder.log.append("step")
        optimizer.step()
        optimizer.zero_grad()
    if not recorder:
        return []
    assert not any(recorder.caches), "autocast would hand them to the training pass"
    return recorder.log


@pytest.mark.parametrize(("norm", "weight"), [(False, None), (True, 0.5)])
def test_the_ascent_runs_between_the_last_step_and_its_use(monkeypatch, norm, weight) -> None:
    log = train(network(norm=norm), Lookahead(weight=weight), monkeypatch)
    assert log[:6] == BESIDE
    assert log.count("forward on side") == 1, "nothing comes after the last batch"


@pytest.mark.parametrize("norm", [False, True])
def test_when_it_runs_changes_nothing(monkeypatch, norm: bool) -> None:
    late, early = network(norm=norm, dropout=0.5), network(norm=norm, dropout=0.5)
    torch.manual_seed(0)
    train(late, Lookahead(weight=0.5, stream=False), steps=4)
    torch.manual_seed(0)
    log = train(early, Lookahead(weight=0.5), monkeypatch, steps=4)
    assert log.count("forward on side") == 3
    assert_same_state(late, early)


def test_an_ascent_that_moves_running_statistics_runs_after_the_training_pass(monkeypatch) -> None:
    log = train(network(), Lookahead(), monkeypatch)
    assert "forward on main" in log and not any("side" in line for line in log)


def test_a_stream_of_its_own_can_be_switched_off(monkeypatch) -> None:
    log = train(network(norm=False), Lookahead(stream=False), monkeypatch)
    assert log.count("forward on main") == 3 and not any("side" in line for line in log)


def test_passes_that_wait_for_other_ranks_run_in_turn(monkeypatch) -> None:
    model = network(norm=False)
    adversary = WeightAdversary(model, ATTACK, "lookahead")
    Recorder(monkeypatch, model, adversary._passes.streams)
    found = []
    original = adversary.schedule.copies
    adversary.schedule.copies = lambda current: found.append(current) or original(current)
    adversary.loss(*batches(1, size=4)[0], cross_entropy)
    adversary._passes.in_step._group = object()
    assert found[0].side_stream() is None

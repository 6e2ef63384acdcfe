"""The method in one file of plain torch: short, free of the library, and equal to it."""

import ast

import pytest
import torch
from torch import nn

import conadv
from conadv.optim import LARS, param_groups, warmup_poly
from support.scripts import ROOT, load_script

PATH = "examples/conadv_in_one_file.py"
EPOCHS, PEAK, EPSILON = 3, 2.0, 4 / 255


def losses_of_the_library(model, batches, mean, std):
    model = conadv.split_norms(model)
    adversary = conadv.Adversary(model, conadv.Attack(EPSILON, mean, std), "recycled")
    optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=PEAK, momentum=0.9)
    total = EPOCHS * len(batches)
    found = []
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * warmup_poly(step, total, total // 5)
        loss = adversary.loss(*batches[step % len(batches)], nn.functional.cross_entropy)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), adversary.diagnostics.clean_loss.item()))
    return found


def test_it_trains_as_the_library_does() -> None:
    script = load_script(PATH)
    images, labels = script.stripes(96)
    batches = list(zip(images.split(20), labels.split(20), strict=True))  # the last one is ragged
    ours, theirs = script.network(), script.network()
    theirs.load_state_dict(ours.state_dict())
    written_out = list(script.train(script.split_norms(ours), batches, EPOCHS, PEAK, EPSILON))
    library = losses_of_the_library(theirs, batches, script.MEAN, script.STD)
    assert written_out == [pytest.approx(pair, rel=2e-5) for pair in library]
    assert written_out[-1][0] < written_out[0][0]


def test_copies_stay_within_epsilon_and_valid_pixels() -> None:
    script = load_script(PATH)
    images, _ = script.stripes(8)
    copies = script.sign_step(images, torch.randn_like(images), EPSILON)
    pixels, moved = (x * script.STD + script.MEAN for x in (images, copies))
    assert (moved - pixels).abs().max() <= EPSILON + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    assert not torch.equal(moved, pixels)


def test_it_is_short_and_needs_nothing_of_the_library() -> None:
    source = (ROOT / PATH).read_text()
    assert len(source.splitlines()) <= 150
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.startswith("conadv") for name in names)

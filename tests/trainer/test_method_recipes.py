"""How a recipe names, refuses and builds the methods to compare with."""

import pytest
import torch
from torch import nn

from conadv.errors import RecipeError
from conadv.optim import Muon
from conadv.trainer.update import make_optimizer
from support.runs import tiny

VANILLA = "method.schedule=vanilla"


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ((), "vanilla"),
        (("optimizer.name=lars",), "vanilla"),
        (("optimizer.name=lamb",), "LAMB"),
        (("optimizer.name=muon",), "Muon"),
        (("optimizer.name=muon", "method.schedule=recycled"), "Muon + recycled"),
        (("method.sam=sam",), "SAM"),
        (("method.sam=async",), "async SAM"),
        (("method.sam=sam", "optimizer.name=muon"), "Muon + SAM"),
        (("optimizer.variance_reduction=true", "optimizer.name=lars"), "VR-LARS"),
        (("optimizer.variance_reduction=true",), "VR-SGD"),
        (("method.view=plain",), "extra view"),
        (("method.view=plain", "method.schedule=recycled"), "extra view + recycled"),
        (("train.steps_factor=2",), "vanilla, 2x steps"),
        (("train.steps_factor=2.66667",), "vanilla, 2.67x steps"),
        (("method.sam=sam", "method.label=mine"), "mine"),
    ],
)
def test_what_tables_call_it(given: tuple[str, ...], label: str) -> None:
    assert tiny(VANILLA, *given).method_label == label


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("method.sam=sam", "method.schedule=recycled"), "would use up the adversarial copies"),
    (("method.rho=0.1",), "method.rho=0.1 with method.sam=none"),
    (("method.sam=sam", "optimizer.variance_reduction=true"), "noise of a gradient at perturbed"),
    (("method.sam=async", "hardware.precision=fp16"), "method.sam=async with hardware.precision"),
    (("method.sam=sam", "hardware.parallel=fsdp"), "method.sam=sam with hardware.parallel=fsdp"),
    (("optimizer.name=muon", "hardware.parallel=fsdp"), "Muon needs whole matrices"),
    (("optimizer.gsnr_gamma=0.2",), "optimizer.gsnr_gamma=0.2 with optimizer.variance_reduction"),
    (("optimizer.gsnr_momentum=0.2",), "no gradient is scaled"),
    (("optimizer.variance_reduction=true", "optimizer.name=lamb"), "there is VR-LARS and VR-SGD"),
    (("optimizer.variance_reduction=true", "batch.micro_batch=16"), "between the gradients of at"),
    (("optimizer.variance_reduction=true", "data.order_tail=keep"), "a short step may have one"),
    (("optimizer.variance_reduction=true", "hardware.precision=fp16"), "before the loss scale"),
    (("optimizer.variance_reduction=true", "hardware.parallel=fsdp"), "the whole gradient on"),
    (("optimizer.name=Muon",), "Did you mean muon"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny(VANILLA, *given)


def test_muon_leaves_the_classifier_and_vectors_to_adamw() -> None:
    recipe = tiny("optimizer.name=muon", "optimizer.weight_decay=0.1")
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 4))
    optimizer = make_optimizer(recipe, model)
    assert isinstance(optimizer, Muon)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    by_muon = [n for n, p in model.named_parameters() if "momentum_buffer" in optimizer.state[p]]
    assert by_muon == ["0.weight"]
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decayed[id(p)] for n, p in model.named_parameters()} == {
        **{n: 0.0 for n, _ in model.named_parameters()},
        "0.weight": 0.1,
        "3.weight": 0.1,
    }

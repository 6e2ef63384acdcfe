"""Mistakes that would turn the method off without a word: each is said, once, or refused."""

import functools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import conadv
from support.loops import (
    ATTACK,
    CLASSES,
    EPSILON,
    MEAN,
    SCHEDULES,
    STD,
    batches,
    cross_entropy,
    network,
    run,
    sgd,
)

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
images, labels = batches(1)[0]


def said(function: Any) -> list[str]:
    """The warnings that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


# -- calls that are forgotten --------------------------------------------------------------------


@every_schedule
def test_a_forgotten_collect_is_said_once(make) -> None:
    model = network()
    adversary, optimizer = conadv.Adversary(model, ATTACK, make()), sgd(model)

    def loop() -> None:
        for x, y in batches(5):
            adversary.loss(x, y, cross_entropy).backward()
            optimizer.step()
            optimizer.zero_grad()

    [message] = said(loop)
    assert "adversary.collect() after backward" in message and "auto_collect=True" in message


def test_a_closure_that_moves_its_images_has_forgotten_nothing() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    for _ in range(2):
        adversary.loss(images.clone(), labels, cross_entropy).backward()
    adversary.collect()


def test_a_loss_without_a_backward_is_no_forgotten_collect() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    for x, y in batches(3):
        adversary.loss(x, y, cross_entropy)


@pytest.mark.parametrize("tau", [1, 2])
def test_lookahead_that_is_never_shown_a_batch_says_so(tau: int) -> None:
    model = network()
    adversary, optimizer = conadv.Adversary(model, ATTACK, conadv.Lookahead(tau)), sgd(model)

    def loop() -> None:
        for x, y in batches(5):
            adversary.loss(x, y, cross_entropy).backward()
            adversary.collect()
            optimizer.step()

    [message] = said(loop)
    assert "adversary.batches(loader)" in message and "peek" in message
    other = conadv.Adversary(network(), ATTACK, conadv.Lookahead(tau))
    assert not said(lambda: run(other, sgd(other.model), batches(5)))


# -- optimizers, wrappers ------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("statistics", ["separate", "affine"])
def test_an_optimizer_made_before_the_split_is_said(make, statistics: str) -> None:
    model = network(split=False)
    optimizer = sgd(model)
    conadv.split_norms(model, statistics=statistics)
    adversary = conadv.Adversary(model, ATTACK, make())
    with pytest.raises(ValueError, match="adversarial in 2 layers.*before\\s+split_norms"):
        adversary.check(optimizer)
    adversary.check(sgd(model))
    messages = said(lambda: run(adversary, optimizer, batches(4)))
    assert len(messages) == (adversary.schedule.name != "vanilla")
    assert all("branch adversarial" in m and "adversary.check" in m for m in messages)


def test_an_optimizer_of_another_model_is_refused() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    with pytest.raises(ValueError, match="no parameter of the adversary's model"):
        adversary.check(sgd(network()))


def test_two_optimizers_that_train_all_between_them_are_enough() -> None:
    model = network()
    parameters = list(model.parameters())
    halves = [torch.optim.SGD(parameters[i::2], lr=0.1) for i in range(2)]
    adversary = conadv.Adversary(model, ATTACK)
    adversary.check(*halves)
    with pytest.raises(ValueError, match="does not train these branches"):
        adversary.check(halves[0])


def test_frozen_norms_need_no_optimizer() -> None:
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    adversary = conadv.Adversary(model, ATTACK)
    adversary.check(optimizer)
    assert not said(lambda: run(adversary, optimizer, batches(3)))


def test_a_bare_model_among_several_processes_is_said(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    [message] = said(lambda: conadv.Adversary(network(), ATTACK))
    assert "2 processes" in message and "DistributedDataParallel" in message

    class Engine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any, **options: Any) -> Any:
            return self.module(*inputs, **options)

    assert not said(lambda: conadv.Adversary(Engine(network()), ATTACK))


def test_a_norm_that_is_neither_split_nor_known_is_said() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = network()
    model.append(OwnNorm())
    [message] = said(lambda: conadv.Adversary(model, ATTACK))
    assert "OwnNorm" in message and "split_norms" in message
    model[-1].eval()
    assert not said(lambda: conadv.Adversary(model, ATTACK))
    model = network()
    model[1] = nn.BatchNorm2d(6)  # put in after the split
    [message] = said(lambda: conadv.Adversary(model, ATTACK))
    assert "1 batch-norm layers" in message


class KerasLayer(nn.Module):
    """As keras/src/backend/torch/layer.py: torch knows a layer's variables, not its layers."""

    def __init__(self, *layers: nn.Module, **variables: torch.Tensor) -> None:
        super().__init__()
        self._layers = list(layers)
        self.trainable = True
        for name, value in variables.items():
            setattr(self, name, SimpleNamespace(value=nn.Parameter(value, requires_grad=False)))
        own = [getattr(self, name).value for name in variables]
        own += [p for layer in layers for p in layer.parameters()]
        self.torch_params = nn.ParameterDict({str(id(value)): value for value in own})

    def _flatten_layers(self, include_self: bool = True, recursive: bool = True) -> list[nn.Module]:
        below = [d for child in self._layers for d in getattr(child, "_flatten_layers", list)()]
        return [*[self] * include_self, *(below if recursive else self._layers)]


def test_batch_norm_of_keras_is_said() -> None:
    statistics = {"moving_mean": torch.zeros(3), "moving_variance": torch.ones(3)}
    norm = KerasLayer(**statistics)
    model = KerasLayer(KerasLayer(gamma=torch.ones(3)), KerasLayer(norm))
    assert norm not in list(model.modules())
    for given in (model, nn.Sequential(norm)):
        [message] = said(lambda given=given: conadv.Adversary(given, ATTACK))
        assert "1 batch-norm layers of Keras" in message and "TorchModuleWrapper" in message
    norm.trainable = False  # its statistics stand still then
    assert not said(lambda: conadv.Adversary(model, ATTACK))


def test_a_split_network_that_keras_hides_is_refused() -> None:
    wrapper = KerasLayer()
    wrapper.module = network()
    with pytest.raises(ValueError, match="an attribute of the model"):
        conadv.Adversary(KerasLayer(wrapper, gamma=torch.ones(3)), ATTACK)
    model = KerasLayer(wrapper)
    model.network = wrapper
    assert not said(lambda: conadv.Adversary(model, ATTACK))


# -- units, labels, gradients --------------------------------------------------------------------


@every_schedule
def test_standardised_images_without_mean_and_std_are_said_once(make) -> None:
    attack = conadv.Attack(EPSILON)
    model = network()
    adversary = conadv.Adversary(model, attack, make())
    [message] = said(lambda: run(adversary, sgd(model), batches(3)))
    assert "outside 0 to 1" in message and "no mean and std were given" in message


@pytest.mark.parametrize(
    ("change", "match"),
    [(255.0, "with the mean and std given"), (None, "No image has a value below 0")],
)
def test_images_in_other_units_are_said(change, match: str) -> None:
    pixels = torch.rand(8, 3, 8, 8)
    x = pixels if change is None else pixels * change
    adversary = conadv.Adversary(network(), ATTACK)
    [message] = said(lambda: adversary.loss(x, labels, cross_entropy))
    assert match in message


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)},
        {"mean": 0.5, "std": 64.0},
        {"mean": -0.4, "std": 0.2},
    ],
)
def test_mean_and_std_in_other_units_are_refused(options) -> None:
    with pytest.raises(ValueError, match="does not fit the pixel range 0 to 1.*/255"):
        conadv.Attack(4 / 255, **options)


def test_grey_levels_throughout_are_allowed() -> None:
    conadv.Attack(4.0, mean=123.7, std=58.4, pixel_range=(0, 255))


@every_schedule
def test_images_that_require_grad_are_refused(make) -> None:
    adversary = conadv.Adversary(network(branches=("clean", "view", "adversarial")), ATTACK, make())
    learned = images.clone().requires_grad_()
    with pytest.raises(ValueError, match="never\\s+learn"):
        adversary.loss(learned, labels, cross_entropy)
    with pytest.raises(ValueError, match="images require grad"):
        adversary.mix(learned, labels, cross_entropy)
    with pytest.raises(ValueError, match="images require grad"):
        adversary.loss(images, labels, cross_entropy, views={"view": (learned, labels)})


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(ignore_index=255),
        nn.CrossEntropyLoss(ignore_index=255, weight=torch.ones(CLASSES)),
        functools.partial(cross_entropy, ignore_index=255),
        lambda outputs, given: cross_entropy(outputs, given, ignore_index=255),
    ],
)
def test_a_label_that_the_criterion_leaves_out_is_allowed(criterion) -> None:
    some = labels.clone()
    some[:2] = 255
    adversary = conadv.Adversary(network(), ATTACK)
    assert adversary.loss(images, some, criterion).isfinite()
    some[:2] = 254
    with pytest.raises(ValueError, match="A label is 254"):
        conadv.Adversary(network(), ATTACK).loss(images, some, criterion)


@pytest.mark.parametrize("name", ["recycled", "sequential"])
def test_gradients_that_are_nan_are_not_called_zeros(name: str) -> None:
    def broken(outputs: Any, given: Any) -> torch.Tensor:
        return cross_entropy(outputs, given) * torch.tensor(float("nan"))

    adversary = conadv.Adversary(network(), ATTACK, name)

    def step() -> None:
        adversary.loss(images, labels, broken).backward()
        adversary.collect()

    [message] = said(step)
    assert "100% of the input gradient is NaN" in message and "skip()" in message
    assert adversary.diagnostics.nan_share == 1


def test_images_of_another_size_than_the_copies_are_one_clear_error() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    for forward in ("joint", "separate"):
        adversary = conadv.Adversary(model, ATTACK, forward=forward)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        larger = nn.functional.interpolate(images, 12)
        if forward == "joint":
            with pytest.raises(ValueError, match=r"\(3, 12, 12\).*\(3, 8, 8\).*forward='separate'"):
                adversary.loss(larger, labels, cross_entropy)
        else:
            adversary.loss(larger, labels, cross_entropy)


# -- states --------------------------------------------------------------------------------------


def test_a_state_from_the_middle_of_a_round_is_said() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    adversary.loss(images, labels, cross_entropy).backward()
    [message] = said(adversary.state_dict)
    assert "after collect()" in message
    adversary.collect()
    assert not said(adversary.state_dict)


@pytest.mark.parametrize(
    "change", [{"epsilon": 2 / 255}, {"norm": "l2"}, {"steps": 3}, {"epsilon_min": 0.0}]
)
def test_a_state_of_another_attack_is_refused(change) -> None:
    one = conadv.Adversary(network(), ATTACK, "lookahead")
    other = conadv.Attack(**{"epsilon": EPSILON, "mean": MEAN, "std": STD, **change})
    two = conadv.Adversary(network(), other, "lookahead")
    state = one.state_dict()
    with pytest.raises(ValueError, match=f"an attack with {next(iter(change))}="):
        two.load_state_dict(state)
    state.pop("attack")
    two.load_state_dict(state)


def test_states_of_one_rank_and_of_all_are_not_confused() -> None:
    adversary = conadv.Adversary(network(), ATTACK)
    run(adversary, sgd(adversary.model), batches(2))
    gathered, own = adversary.gathered_state_dict(), adversary.state_dict()
    other = conadv.Adversary(network(), ATTACK)
    with pytest.raises(ValueError, match="load_gathered"):
        other.load_state_dict(gathered)
    with pytest.raises(ValueError, match="load_state_dict"):
        other.load_gathered(own)
    with pytest.raises(ValueError, match="of 2 ranks and now there are 1"):
        other.load_gathered({"version": 1, "ranks": gathered["ranks"] * 2})
    with pytest.raises(ValueError, match="no part for rank 0"):
        other.load_gathered({"version": 1, "ranks": [None]})
    other.load_gathered(gathered)
    assert other.images == adversary.images == 16


def test_a_criterion_that_adds_up_is_refused() -> None:
    adversary = conadv.Adversary(network(), ATTACK, "recycled")
    with pytest.raises(ValueError, match="CrossEntropyLoss has reduction='sum'"):
        adversary.loss(images, labels, nn.CrossEntropyLoss(reduction="sum"))

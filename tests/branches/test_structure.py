"""The walk through a model's modules that is taken once."""

import gc
import weakref
from typing import Any

import torch
from torch import nn

import conadv
from conadv.branches.structure import modules_of, modules_of_kind
from conadv.branches.wrappers import inside, unwrap


def test_it_is_what_modules_gives_also_after_a_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert modules_of(model) == list(model.modules())
    assert modules_of(model) == list(model.modules())
    model[1].append(nn.BatchNorm1d(2))
    assert modules_of(model) == list(model.modules())
    model[1][0] = nn.Tanh()
    assert modules_of(model) == list(model.modules())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert modules_of(converted) == list(converted.modules())


def test_modules_of_a_kind_follow_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert modules_of_kind(model, nn.modules.batchnorm._BatchNorm) == [model[1]]
    assert modules_of_kind(model, nn.Conv2d) == [model[0]]
    model.append(nn.BatchNorm1d(2))
    assert modules_of_kind(model, nn.modules.batchnorm._BatchNorm) == [*model[1:]]


def test_a_second_look_walks_nothing(monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    modules_of(model)
    monkeypatch.setattr(nn.Module, "modules", None)
    assert len(modules_of(model)) == 2


def test_a_model_is_not_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.hidden = [model]
    modules_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Engine(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)


class Network(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x).softmax(1)


class Precision:
    """What Fabric's wrapper keeps."""

    @staticmethod
    def forward_context() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    @staticmethod
    def convert_input(x: torch.Tensor) -> torch.Tensor:
        return x.float()

    @staticmethod
    def convert_output(x: torch.Tensor) -> torch.Tensor:
        return x.float()


class FabricLike(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = self._original_module = module
        self._precision = Precision()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with self._precision.forward_context():
            return self._precision.convert_output(self._forward_module(*inputs, **options))


def test_wrappers_are_looked_through_and_networks_are_not() -> None:
    bare = nn.Linear(2, 2)
    assert unwrap(Engine(bare))[0] is bare
    assert unwrap(FabricLike(Engine(bare)))[0] is bare
    assert inside(Network(bare)) is None and inside(nn.Sequential(bare)) is None
    average = torch.optim.swa_utils.AveragedModel(bare)
    assert unwrap(average)[0] is average


def test_an_attack_has_the_precision_of_fabrics_wrapper() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    seen = []
    body[1].register_forward_hook(lambda m, given, output: seen.append(output.dtype))
    attack = conadv.Attack(0.1, pixel_range=None)
    x, y = torch.randn(4, 3, 2, 2), torch.arange(4) % 3
    attack(FabricLike(body), x, y, nn.functional.cross_entropy)
    assert seen == [torch.bfloat16]

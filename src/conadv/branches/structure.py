"""The modules of a model, walked once: a walk through ResNet-50 takes the host most of a ms."""

import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


class _Walks:
    """Who has been walked, and when: any registration of a module makes all walks old."""

    def __init__(self) -> None:
        self.registrations = 0
        self.done: weakref.WeakKeyDictionary[
            nn.Module, tuple[int, list[weakref.ref[nn.Module]]]
        ] = weakref.WeakKeyDictionary()
        self._watching = False

    def watch(self) -> None:
        if not self._watching:
            self._watching = True
            register_module_module_registration_hook(self._registered)

    def _registered(self, parent: Any, name: str, child: Any) -> None:
        self.registrations += 1


_walks = _Walks()


def modules_of(model: nn.Module) -> list[nn.Module]:
    """``list(model.modules())``, remembered until a module is registered anywhere.

    By weak references, so that nothing of a model outlives it.
    """
    if torch.compiler.is_compiling():
        return list(model.modules())
    _walks.watch()
    found = _walks.done.get(model)
    if found is None or found[0] != _walks.registrations:
        found = _walks.registrations, [weakref.ref(module) for module in model.modules()]
        _walks.done[model] = found
    return [module for reference in found[1] if (module := reference()) is not None]

"""The modules of a model, walked once: a walk through ResNet-50 takes the host most of a ms."""

import weakref
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

Kind = TypeVar("Kind", bound=nn.Module)


class _Walks:
    """Record of who has been walked, and when: any registration of a module makes all walks old."""

    def __init__(self) -> None:
        self.registrations = 0
        self.done: weakref.WeakKeyDictionary[
            nn.Module, tuple[int, dict[type[nn.Module], list[weakref.ref[Any]]]]
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
    return modules_of_kind(model, nn.Module)


def modules_of_kind(model: nn.Module, kind: type[Kind]) -> list[Kind]:
    """Those of `modules_of` that are instances of `kind`, remembered as well.

    A class that is put on in place, as `fully_shard` does, is no registration: look through all
    modules for such a kind.
    """
    if torch.compiler.is_compiling():
        return [module for module in model.modules() if isinstance(module, kind)]
    _walks.watch()
    registrations, found = _walks.done.get(model, (-1, {}))
    if registrations != _walks.registrations:
        found = {}
        _walks.done[model] = _walks.registrations, found
    if kind not in found:
        found[kind] = [weakref.ref(m) for m in model.modules() if isinstance(m, kind)]
    return [module for reference in found[kind] if (module := reference()) is not None]

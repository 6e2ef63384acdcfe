"""Which names `model.name` takes, and how those networks normalise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv.branches import SampleNorms
from conadv.errors import ConadvError
from conadv.training.models import create_model, import_library
from conadv.training.small_networks import SMALL_NETWORKS

KINDS = ("batch", "layer", "group", "rms", "other")


def model_names(text: str = "") -> list[str]:
    """Names with library that contain `text`, in any case, our own networks first.

    ``torchvision/`` alone gives all of that library's, ``resnet50`` every library's.
    """
    timm = import_library("timm")
    models = import_library("torchvision").models
    names = [
        *(f"cifar/{name}" for name in SMALL_NETWORKS),
        *(f"torchvision/{name}" for name in models.list_models(module=models)),
        *(f"timm/{name}" for name in timm.list_models()),
    ]
    return [name for name in names if text.lower() in name.lower()]


def family(name: str) -> str:
    """The file of timm that defines an architecture, such as ``resnet``; else the library."""
    library, _, short = name.partition("/")
    if library != "timm":
        return library
    module: str = import_library("timm").model_entrypoint(short).__module__
    return module.rpartition(".")[2]


def normalisations(model: nn.Module) -> list[str]:
    """Kinds of a network's normalisation layers, in the order of `KINDS`; empty if it has none.

    ``other`` are layers named so that are none of these, such as EvoNorm: they are never split.
    """
    found = {kind for module in model.modules() if (kind := _kind(module)) is not None}
    return [kind for kind in KINDS if kind in found]


def list_normalisations(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each name with the kinds of its layers, joined by commas; ``none`` and why not are words.

    The networks are made without memory for their weights, a few hundredths of a second each.
    """
    for name in names:
        yield name, _of_name(name)


def _of_name(name: str) -> str:
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            kinds = normalisations(create_model(name))
    except ConadvError:
        raise
    except Exception as error:
        return f"unknown ({type(error).__name__} without weights)"
    return ", ".join(kinds) or "none"


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, _BatchNorm):
        return "batch"
    for kind, layer in zip(("layer", "group", "rms"), SampleNorms, strict=True):
        if isinstance(module, layer):
            return kind
    names = [cls.__name__.lower() for cls in type(module).__mro__]
    if any("rmsnorm" in name for name in names):
        return "rms"
    own = any(p is not None for p in module._parameters.values())
    return "other" if own and "norm" in names[0] and not _holds_norm(module) else None


def _holds_norm(module: nn.Module) -> bool:
    """Whether a layer with norm in its name is one around a real one, as LinearNorm."""
    return any(isinstance(m, (_BatchNorm, *SampleNorms)) for m in module.modules())

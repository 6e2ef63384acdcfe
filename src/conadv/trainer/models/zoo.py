"""Make a network from its name in a recipe: our small ones, torchvision's or timm's."""

import copy
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv._words import import_callable, is_path
from conadv.branches.branches import SampleNorms
from conadv.errors import ConadvError, RecipeError, doing, install_command
from conadv.trainer.models.names import check_library, unknown
from conadv.trainer.models.small_resnet import SMALL_NETWORKS
from conadv.trainer.models.warm_start import freeze


class ModelSettings(Protocol):
    """The section ``model`` of a recipe."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def in_chans(self) -> int | None: ...  # noqa: D102
    @property
    def num_classes(self) -> int | None: ...  # noqa: D102
    @property
    def pretrained(self) -> bool: ...  # noqa: D102
    @property
    def zero_init_last(self) -> bool: ...  # noqa: D102
    @property
    def freeze(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def options(self) -> dict[str, Any]: ...  # noqa: D102


_PRETRAINED_OPTIONS: dict[str, dict[str, Any]] = {
    "torchvision/googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "torchvision/inception_v3": {"transform_input": True, "init_weights": False},
}
"""What torchvision changes about a network when it loads weights into it."""


def build_model(
    settings: ModelSettings, in_chans: int, num_classes: int, *, download: bool = True
) -> nn.Module:
    """The network of a recipe for given data, its frozen parameters without gradient.

    Args:
        settings: the recipe's section ``model``.
        in_chans: channels of the images.
        num_classes: classes of the data set.
        download: false where other weights follow: a pretrained network then has random ones.

    Raises:
        RecipeError: no such network, options it does not take, or a number of channels or classes
            that does not fit the data.
        ConadvError: the library that has it is missing, or does not fit the installed torch.
    """
    if settings.in_chans not in (None, in_chans):
        raise RecipeError(
            f"model.in_chans={settings.in_chans}, but the images have {in_chans} channels. Set it "
            "to null to take the number from the data."
        )
    if settings.num_classes is not None and settings.num_classes < num_classes:
        raise RecipeError(
            f"model.num_classes={settings.num_classes}, but the data has {num_classes} classes. "
            "Give at least as many, or null to take the number from the data."
        )
    options = settings.options
    if settings.pretrained and not download:
        options = _PRETRAINED_OPTIONS.get(settings.name, {}) | options
    model = create_model(
        settings.name,
        in_chans,
        settings.num_classes or num_classes,
        pretrained=settings.pretrained and download,
        zero_init_last=settings.zero_init_last,
        options=options,
    )
    freeze(model, settings.freeze)
    return model


def create_model(
    name: str,
    in_chans: int = 3,
    num_classes: int = 10,
    *,
    pretrained: bool = False,
    zero_init_last: bool = True,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network by its name with library, such as ``cifar/resnet20`` or ``timm/resnet50``.

    Args:
        name: ``cifar/NAME`` (see `SMALL_NETWORKS`), ``torchvision/NAME``, ``timm/NAME``, or
            ``module:attribute``: a network, of which a copy is taken, or what makes one, called
            with ``in_chans=``, ``num_classes=`` and the options.
        in_chans: channels of the images.
        num_classes: number of outputs.
        pretrained: start from the library's default weights, which are downloaded; the last
            layer is new unless it fits.
        zero_init_last: start the last batch norm of every residual block at 0, otherwise at 1;
            the blocks meant are ResNet's (basic and bottleneck), other architectures keep their
            own initialisation. Without effect on pretrained networks and one's own.
        options: further keyword arguments of the library's constructor.

    Raises:
        RecipeError: no such network, or options it does not take.
        ConadvError: the library is missing, or does not fit the installed torch.
    """
    with doing(f"building the network {name}"):
        check_library(name)
        if is_path(name):
            return _own(name, in_chans, num_classes, dict(options or {}))
        model = _of_library(name, in_chans, num_classes, pretrained, dict(options or {}))
        if not pretrained:
            _set_last_gammas(model, 0.0 if zero_init_last else 1.0)
    return model


def _of_library(
    name: str, in_chans: int, num_classes: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    library, _, short = name.partition("/")
    try:
        if library == "cifar":
            return SMALL_NETWORKS[short](in_chans, num_classes, **options)
        make = _timm if library == "timm" else _torchvision
        return make(short, in_chans, num_classes, pretrained, options)
    except TypeError as error:
        if not options:
            raise
        raise RecipeError(
            f"model.options={options}: {name} does not take them ({error}). Leave out what its "
            "constructor does not have."
        ) from error


def _own(name: str, in_chans: int, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """The network that ``module:attribute`` is or makes."""
    try:
        made = import_callable(name)
    except ValueError as error:
        raise RecipeError(f"model.name={name!r}: {error}.") from error
    if isinstance(made, nn.Module):
        if options:
            raise RecipeError(f"model.options={options}: {name} is a network already.")
        return copy.deepcopy(made)
    try:
        model = made(in_chans=in_chans, num_classes=num_classes, **options)
    except TypeError as error:
        raise RecipeError(
            f"model.name={name!r} failed when called with in_chans={in_chans}, num_classes="
            f"{num_classes} and model.options={options}: {error}. It has to take these."
        ) from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model.name={name!r} made {type(model).__name__}: no torch.nn.Module.")
    return model


def import_library(name: str) -> ModuleType:
    """Import torchvision or timm, and say what to do where that fails.

    Raises:
        ConadvError: it is not installed, or was built for another torch.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConadvError(
            f"{error.name or name} is not installed, and this needs it. "
            f"Type: {install_command('train')}"
        ) from error
    except (RuntimeError, ImportError, OSError) as error:
        raise ConadvError(
            f"torchvision does not fit the torch that is installed ({error}). A build of torch "
            "for the CPU alone beside an ordinary build of torchvision does that. Install both "
            "from the same place, in one command: pip install --force-reinstall torch torchvision"
        ) from error


def _timm(
    name: str, in_chans: int, num_classes: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    timm = import_library("timm")
    # A tag of pretrained weights may follow a dot: resnet50.a1_in1k.
    if not timm.is_model(name.partition(".")[0]):
        problem = unknown("timm", name, timm.list_models())
        raise RecipeError(f"name={f'timm/{name}'!r}: {problem}")
    model: nn.Module = timm.create_model(
        name, pretrained=pretrained, in_chans=in_chans, num_classes=num_classes, **options
    )
    return model


def _torchvision(
    name: str, in_chans: int, num_classes: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    models = import_library("torchvision").models
    known = models.list_models(module=models)
    if problem := unknown("torchvision", name, known):
        raise RecipeError(f"name={f'torchvision/{name}'!r}: {problem}")
    model: nn.Module
    if pretrained:
        model = models.get_model(name, weights="DEFAULT", **options)
        _replace_head(model, num_classes)
    else:
        model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_chans != 3:
        _replace_stem(model, name, in_chans, pretrained)
    return model


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the last linear layer `num_classes` outputs, freshly initialised."""
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    if last.out_features != num_classes:
        model.set_submodule(name, nn.Linear(last.in_features, num_classes))


def _replace_stem(model: nn.Module, name: str, in_chans: int, pretrained: bool) -> None:
    """Give the first convolution `in_chans` inputs; torchvision has no argument for that."""
    if pretrained:
        raise RecipeError(
            f"model.pretrained=true: the weights of torchvision/{name} are for 3 channels, and the "
            f"images have {in_chans}. Use timm/NAME, which adapts them, or start from scratch."
        )
    where, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        in_chans,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(where, new)


def _set_last_gammas(model: nn.Module, value: float) -> None:
    """Set the weight of the last batch norm of every ResNet block."""
    for block in model.modules():
        if type(block).__name__ in ("BasicBlock", "Bottleneck"):  # ours, torchvision's, timm's
            last = getattr(block, "bn3", None) or getattr(block, "bn2", None)
            weight = getattr(last, "weight", None)
            if isinstance(weight, nn.Parameter):
                nn.init.constant_(weight, value)


KINDS = ("batch", "layer", "group", "rms", "other")


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
    # A layer with norm in its name may be one around a real one, as LinearNorm.
    around = any(isinstance(m, (_BatchNorm, *SampleNorms)) for m in module.modules())
    return "other" if own and "norm" in names[0] and not around else None

"""Check that an architecture goes through conadv whole: split, trained, exported, itself again."""

import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import conadv
from conadv.branches.branches import SplitNorm
from conadv.trainer.evaluation.export import safetensors_of
from conadv.trainer.models.zoo import create_model, import_library, normalisations

CLASSES = 7
IMAGES = 4
"""Images per round: small, but batch norm over one pixel per image still has a variance."""
ROUNDS = 2
"""The first round makes copies, the second trains on them."""

_BRANCH = re.compile(r"(?:norms|affines)\.[^.]+\.")


@dataclass(frozen=True)
class CheckedModel:
    """What was found for one architecture: a row of the table."""

    name: str
    works: bool
    reason: str = ""
    """Empty, or where it failed and why, in one line."""
    image_size: int = 0
    """Height and width in pixels."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor beside the number of classes."""
    normalisation: str = ""
    """Kinds of its normalisation layers, such as ``batch, layer``."""
    split: str = ""
    """Kinds that were split: ``batch``, else those that normalise each image alone, or none."""
    split_layers: int = 0
    parameters: int = 0
    seconds: float = 0.0


class _FailedError(Exception):
    """A property does not hold."""


def check_model(
    name: str, image_size: int = 64, options: Mapping[str, Any] | None = None
) -> CheckedModel:
    """Convert an untrained network, train two recycled rounds, export and compare.

    In this order, on the CPU in fp32 and over random images:

    1. The split network's evaluation output equals the original's, bit for bit. Batch norm is
       split; where there is none, the affine parameters of layer, group and RMS norm are.
    2. Two rounds of ``Adversary(schedule="recycled")`` with a step of SGD in between: the loss is
       finite, the second round trains copies that differ from their images, every parameter
       that has a gradient in ordinary training has one, and so has each adversarial counterpart.
    3. What ``conadv export`` writes loads strictly into a network that timm or torchvision makes
       by name, without conadv, and the evaluation outputs of that one, of ``plain`` and of the
       split network are equal, bit for bit.

    Args:
        name: as in a recipe: ``cifar/NAME``, ``torchvision/NAME`` or ``timm/NAME``.
        image_size: height and width of the images in pixels.
        options: further keyword arguments of the library's constructor.

    Returns:
        The row. Whatever goes wrong is its `reason`; nothing but KeyboardInterrupt is raised.
    """
    start = time.perf_counter()
    given = dict(options or {})
    found: dict[str, Any] = {}
    stage = ["build"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check(name, image_size, given, found, stage)
        reason = ""
    except Exception as error:
        said = str(error).strip().splitlines()
        kind = "" if isinstance(error, _FailedError) else f"{type(error).__name__}: "
        reason = f"{stage[0]}: {kind}{said[0] if said else ''}"[:200]
    return CheckedModel(
        name=name,
        works=not reason,
        reason=reason,
        image_size=image_size,
        options=given,
        seconds=round(time.perf_counter() - start, 2),
        **found,
    )


def _check(
    name: str, size: int, options: dict[str, Any], found: dict[str, Any], stage: list[str]
) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, CLASSES, options=options)
    _wake(model)
    kinds = normalisations(model)
    found.update(
        normalisation=", ".join(kinds),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    # Standardised pixels over the whole range; a second batch, so that the copies are of others.
    batches = [2 * torch.rand(IMAGES, 3, size, size) - 1 for _ in range(ROUNDS)]
    labels = torch.arange(IMAGES) % CLASSES
    keys = list(model.state_dict())
    trained = _trained_parameters(model, batches[0], labels)
    before = _evaluate(model, batches[0])

    stage[0] = "convert"
    split = conadv.split_norms(model, layer_norm="batch" not in kinds)
    layers = [m for m in split.modules() if isinstance(m, SplitNorm)]
    found["split_layers"] = len(layers)
    found["split"] = "batch" if "batch" in kinds else ", ".join(kinds) if layers else ""
    _check_equal(before, _evaluate(split, batches[0]), "the split network", "the original")

    stage[0] = "train"
    _train(split, batches, labels, trained)

    stage[0] = "export"
    plain = conadv.plain(split)
    content = safetensors_of(plain, {"model": name})
    if list(plain.state_dict()) != keys:
        raise _FailedError("plain() has other keys than the original")
    fresh = _load(name, options, content)

    stage[0] = "compare"
    expected = _evaluate(fresh, batches[0])
    if not torch.isfinite(expected).all():
        raise _FailedError("the evaluation output is not finite")
    _check_equal(expected, _evaluate(plain, batches[0]), "plain()", "the exported network")
    _check_equal(expected, _evaluate(split, batches[0]), "the split network", "the exported one")


def _wake(model: nn.Module) -> None:
    """Give parameters that start as all zeros (last gammas, layer scales, heads) small values.

    A zero gamma keeps the gradient from everything before it, and one round of training moves the
    clean branch's alone: without this, two rounds would not show that copies reach every layer.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def _trained_parameters(model: nn.Module, images: Tensor, labels: Tensor) -> set[str]:
    """Names of the parameters that ordinary training gives a gradient; statistics are put back."""
    # Of what is saved only: other buffers are caches, which some networks make anew for a size.
    buffers = {name for name, _ in model.named_buffers()}
    before = {n: v.clone() for n, v in model.state_dict().items() if n in buffers}
    model.train()
    nn.functional.cross_entropy(model(images), labels).backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name in before:
                value.copy_(before[name])
    return names


def _evaluate(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model.eval()(images)
    return output


def _check_equal(expected: Tensor, got: Tensor, one: str, other: str) -> None:
    if expected.shape != got.shape:
        shapes = f"{tuple(got.shape)} and {tuple(expected.shape)}"
        raise _FailedError(f"outputs of {one} and {other} have shapes {shapes}")
    if not torch.equal(expected, got):
        difference = float((expected - got).abs().max())
        raise _FailedError(f"{one} and {other} differ by up to {difference:.2g}")


def _train(model: nn.Module, batches: list[Tensor], labels: Tensor, trained: set[str]) -> None:
    attack = conadv.Attack(epsilon=4 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
    adversary = conadv.Adversary(model, attack, schedule="recycled")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for images in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = adversary.loss(images, labels, criterion)
        if not torch.isfinite(loss):
            raise _FailedError(f"the loss is {float(loss.detach())}")
        loss.backward()
        adversary.collect()
        optimizer.step()
    if adversary.diagnostics.adversarial_loss is None or adversary.preview is None:
        raise _FailedError("the second round trained no copies")
    _, copies, _ = adversary.preview
    if torch.equal(copies, batches[-2][: len(copies)]):
        raise _FailedError("the copies equal their images: no input gradient")
    without = {
        _BRANCH.sub("", name) for name, p in model.named_parameters() if p.grad is None
    } & trained
    if without:
        first = sorted(without)[0]
        raise _FailedError(f"{len(without)} parameters have no gradient, such as {first}")
    for name, module in model.named_modules():
        if isinstance(module, SplitNorm):
            _check_adversarial(name, module, trained)


def _check_adversarial(name: str, layer: SplitNorm, trained: set[str]) -> None:
    """A layer's adversarial parameters must be reached wherever its clean ones are."""
    clean, adversarial = (dict(norm.named_parameters()) for norm in layer.norms.values())
    for key, value in adversarial.items():
        if f"{name}.{key}" not in trained:
            continue
        reached, other = value.grad, clean[key].grad
        if reached is None or other is None:
            raise _FailedError(f"{name}.{key} has no gradient in a branch")
        if not torch.isfinite(reached).all():
            raise _FailedError(f"the adversarial gradient of {name}.{key} is not finite")
        if other.any() and not reached.any():
            raise _FailedError(f"the adversarial gradient of {name}.{key} is zero")


def _load(name: str, options: dict[str, Any], content: bytes) -> nn.Module:
    """A network as a user without conadv makes it, with the exported weights."""
    from safetensors.torch import load

    library, _, short = name.partition("/")
    torch.manual_seed(1)  # other weights than the first time
    if library == "timm":
        fresh = import_library("timm").create_model(short, num_classes=CLASSES, **options)
    elif library == "torchvision":
        models = import_library("torchvision").models
        fresh = models.get_model(short, weights=None, num_classes=CLASSES, **options)
    else:
        fresh = create_model(name, 3, CLASSES, options=options)
    fresh.load_state_dict(load(content), strict=True)
    network: nn.Module = fresh
    return network

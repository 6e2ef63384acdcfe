"""What the adversary checks before anything is computed: the model, labels, rows."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv.adversary.mixing import find_distributed, is_fully_sharded
from conadv.attack import Criterion
from conadv.branches.routing import Router
from conadv.branches.split_norm import SplitNorm
from conadv.branches.structure import modules_of
from conadv.branches.wrappers import inside, is_optimized


def check_model(model: nn.Module) -> None:
    """Raise ValueError for a model that has no parameters, or not yet."""
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameters: there is nothing to train. Give the "
            "network itself, not a loss or a container of functions."
        )
    if any(nn.parameter.is_lazy(p) for p in parameters):
        raise ValueError(
            f"{type(model).__name__} has lazy modules that have not seen data yet: run one batch "
            "through it (model(images)) before split_norms and Adversary."
        )


def warn_unsplit(model: nn.Module) -> None:
    """Warn where clean and adversarial images would share statistics without being asked to.

    Raises:
        ValueError: split layers that nobody can route images to.
    """
    modules = modules_of(model)
    hidden = _hidden_by_keras(modules)
    if any(isinstance(m, SplitNorm) for m in hidden):
        raise ValueError(
            "The model's split layers are in a list of Keras's, where torch's modules() does not "
            "find them, so images cannot be routed: make the split network an attribute of the "
            "model, self.network = keras.layers.TorchModuleWrapper(conadv.split_norms(network))."
        )
    modules = [*modules, *hidden]
    split = {id(inner) for m in modules if isinstance(m, SplitNorm) for inner in m.modules()}
    left = [m for m in modules if id(m) not in split and _keeps_statistics(m)]
    known = [m for m in left if isinstance(m, _BatchNorm)]
    if known:
        warnings.warn(
            f"The model has {len(known)} batch-norm layers that clean and adversarial images "
            "share: accuracy suffers. Call conadv.split_norms(model) first, or say that it is "
            "meant with split_norms(model, statistics='shared').",
            UserWarning,
            stacklevel=3,
        )
    elif left and hasattr(left[0], "moving_mean"):
        warnings.warn(
            f"The model has {len(left)} batch-norm layers of Keras, which split_norms does not "
            "know: clean and adversarial images share them, and attacks move their statistics. "
            "Give the model a torch network, as an attribute: self.network = "
            "keras.layers.TorchModuleWrapper(conadv.split_norms(network)).",
            UserWarning,
            stacklevel=3,
        )
    elif left:
        warnings.warn(
            f"{type(left[0]).__name__} keeps running statistics of its own and is no batch norm "
            f"that split_norms knows ({len(left)} such layers): clean and adversarial images share "
            "it. Use torch.nn.BatchNorm2d or a subclass, or give the layer eval mode.",
            UserWarning,
            stacklevel=3,
        )


def _keeps_statistics(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return True
    if getattr(module, "moving_mean", None) is not None:  # Keras's
        return bool(getattr(module, "trainable", True))
    # A frozen batch norm never writes to them.
    named = module.training and "frozen" not in type(module).__name__.lower()
    return named and module._buffers.get("running_mean") is not None


def _hidden_by_keras(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that torch does not see: a Keras model on torch keeps its layers in a list."""
    seen = {id(m) for m in modules}
    layers = [layer for m in modules for layer in getattr(m, "_flatten_layers", list)()]
    inside = {id(m): m for layer in layers for m in layer.modules()}
    return [m for key, m in inside.items() if key not in seen]


def warn_unwrapped(model: nn.Module) -> None:
    """Warn where several processes train and nothing would average their gradients."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    bare = inside(model._orig_mod if is_optimized(model) else model) is None  # type: ignore[arg-type]
    sharded = is_fully_sharded(model) or any(
        "FullyShardedDataParallel" in type(m).__name__ for m in modules_of(model)
    )
    if bare and find_distributed(model) is None and not sharded:
        warnings.warn(
            f"The process group has {dist.get_world_size()} processes and the adversary was given "
            f"a bare {type(model).__name__}: its loss goes around the wrapper that averages "
            "gradients, and the processes drift apart. Give it the wrapped model (what "
            "DistributedDataParallel, fabric.setup or accelerator.prepare returns), or ignore this "
            "if you average the gradients yourself.",
            UserWarning,
            stacklevel=3,
        )


def check_leaves(images: Tensor) -> None:
    """Raise ValueError for images that something trainable has made."""
    if images.requires_grad:
        raise ValueError(
            "The images require grad: they are detached here, so whatever made them would never "
            "learn. Put it into the model, or hand over images.detach() if it is not to learn; "
            "or are they of mix(), whose batch is for the model, not for loss()?"
        )


def check_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise ValueError where a branch of a layer is trained and another one is not."""
    known = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    own = [p for p in model.parameters() if p.requires_grad]
    if not any(id(p) in known for p in own):
        raise ValueError(
            "The optimizer has no parameter of the adversary's model: make it from "
            "model.parameters() of that very model, after it was moved or converted."
        )
    names: dict[str, int] = {}
    for module in modules_of(model):
        if isinstance(module, SplitNorm):
            branches = module.trainable()
            if any(id(p) in known for ps in branches.values() for p in ps):
                for name, parameters in branches.items():
                    if any(id(p) not in known for p in parameters):
                        names[name] = names.get(name, 0) + 1
    if names:
        found = ", ".join(f"{name} in {count} layers" for name, count in names.items())
        raise ValueError(
            f"The optimizer does not train these branches: {found}. It was made before "
            "split_norms, or from a part of the parameters: make it afterwards, from "
            "model.parameters()."
        )


def check_branch(routers: Sequence[Router], name: str | None, argument: str) -> None:
    """Raise ValueError where a part of the model has no branch of that name."""
    for router in routers:
        if name not in router.branches:
            raise ValueError(
                f"{argument}: the model has no branch {name!r}, it was split into "
                f"{', '.join(router.branches)}."
            )


def check_labels(labels: Any, outputs: Any, criterion: Criterion) -> None:
    """Raise ValueError for integer labels outside the outputs' classes that are not ignored.

    On a GPU such a label is a device-side assert that kills the process; one look at the first
    batch is cheap. Whether the criterion knows it, the criterion is asked, on the CPU. Other
    labels than one integer per row are the criterion's affair.
    """
    if not isinstance(labels, Tensor) or not isinstance(outputs, Tensor):
        return
    if labels.is_floating_point() or labels.ndim != 1 or outputs.ndim != 2:
        return
    classes = outputs.shape[1]
    outside = (labels >= classes) | (labels < 0)
    if not outside.any():
        return
    row = int(outside.nonzero()[0])
    try:
        with torch.no_grad():
            alone = (
                copy.deepcopy(criterion).cpu() if isinstance(criterion, nn.Module) else criterion
            )
            alone(outputs[row : row + 1].float().cpu(), labels[row : row + 1].cpu())
    except Exception as error:
        raise ValueError(
            f"A label is {int(labels[row])}, but the model has {classes} outputs: labels "
            f"run from 0 to {classes - 1}. Check the labels' offset, or the model's number of "
            "classes; for labels to leave out give the criterion its ignore_index."
        ) from error


def checking(criterion: Criterion) -> Criterion:
    """`criterion`, which looks at the labels first: for the attack it may be the first to see.

    Raises:
        ValueError: it adds up where a mean is needed, and says so.
    """
    if getattr(criterion, "reduction", None) == "sum":
        raise ValueError(
            f"{type(criterion).__name__} has reduction='sum': the parts of a batch would count by "
            "their sizes twice, and the loss would grow with the copies. Use reduction='mean'."
        )

    def checked(outputs: Any, labels: Any) -> Any:
        check_labels(labels, outputs, criterion)
        return criterion(outputs, labels)

    return checked


def no_criterion(outputs: Any, labels: Any) -> Tensor:
    """The criterion of a `mix` that was given none."""
    raise ValueError(
        "mix() was given no criterion, and this schedule attacks with one: call "
        "mix(images, labels, criterion) with criterion(outputs, labels) -> mean loss."
    )

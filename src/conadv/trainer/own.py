"""Objects of one's own that a recipe names: ``module:attribute``, or known in this process alone.

What cannot be imported is kept here as an attribute of this module, so that the recipe's name for
it, ``conadv.trainer.own:Net_1a2b3c4d``, is found like any other. A process that resumes or reads
the run has to be given the object first: by `train`, or by `keep`.
"""

import re
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from conadv._words import is_path
from conadv.trainer.data.dataset import ImageDataset
from conadv.trainer.recipe import Recipe, change_recipe


def keep(thing: Any) -> str:
    """Make a thing known in this process under a name for recipes, and return that.

    The name of a network has a checksum of its structure, that of a data set one of its images:
    the same thing has the same name in every process.
    """
    if isinstance(thing, ImageDataset):
        word, content = thing.name, thing.fingerprint
    elif isinstance(thing, nn.Module):
        word, content = type(thing).__name__, repr(thing)
    else:
        word = getattr(thing, "__qualname__", type(thing).__name__)
        content = f"{getattr(thing, '__module__', '')}.{word}"
    word = re.sub(r"\W+", "_", word).strip("_") or "thing"
    attribute = f"own_{word}_{zlib.crc32(content.encode()):08x}"
    globals()[attribute] = thing
    return f"{__name__}:{attribute}"


def name_of(thing: Any) -> str:
    """``module:attribute`` of a thing: its own where it can be imported, otherwise by `keep`."""
    if isinstance(thing, str) and is_path(thing):
        return thing
    module = getattr(thing, "__module__", None)
    attribute = getattr(thing, "__qualname__", None)
    path = f"{module}:{attribute}"
    if module in (None, "__main__") or not attribute or not is_path(path):
        return keep(thing)  # what is in __main__ is elsewhere in the next process
    found = getattr(sys.modules.get(str(module)), attribute, None)
    return path if found is thing else keep(thing)


def with_own(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """A recipe in which some fields name objects.

    Args:
        recipe: Any.
        given: Objects by dotted field; None leaves the field alone.

    Raises:
        RecipeError: The recipe is impossible with them.
    """
    names = [f"{field}={name_of(x)}" for field, x in given.items() if x is not None]
    return change_recipe(recipe, names) if names else recipe


def with_logger(recipe: Recipe, logger: Any) -> Recipe:
    """A recipe with one's own logger among its loggers; None adds nothing."""
    if logger is None:
        return recipe
    names = dict.fromkeys([*recipe.logging.loggers, name_of(logger)])
    return change_recipe(recipe, [f"logging.loggers=[{', '.join(names)}]"])


def __getattr__(name: str) -> Any:
    """What is not here was given to another process."""
    if name.startswith("own_"):
        raise AttributeError(
            f"{name} was an object that another process gave to train(). Give it again: to "
            "train(..., resume=True), or for other commands to conadv.trainer.own.keep(...) in "
            "the same process. A function or class in a module of its own is found without that"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The trained network as an ordinary one, in a file that cannot run code."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors.torch import save
from torch import nn

import conadv
from conadv._files import write_atomic
from conadv.errors import RunFolderError, doing
from conadv.trainer.checkpoint.load_run import SavedRun, load_run
from conadv.trainer.evaluation.model_card import model_card
from conadv.trainer.input.random_images import images_of


def export_run(
    run: Path | str,
    path: Path | str | None = None,
    *,
    checkpoint: str = "last",
    branch: str | None = None,
    overrides: Sequence[str] = (),
    card: Path | str | None = None,
) -> Path:
    """Write the plain model of a run as safetensors, or as ONNX.

    A safetensors file has the keys of the original model, so timm and torchvision load it by name.
    An ONNX file takes ``images`` on [0, 1], float32 (N, C, H, W), and gives ``logits``: mean and
    std are a part of it. It is compared with the network before it is written. The metadata of
    either say what it is: ``model``, ``options``, ``num_classes``, ``in_chans``, ``mean``,
    ``std``, ``classes``, ``dataset``, ``branch``, ``step`` and ``conadv`` (the version).

    Args:
        run: The run folder.
        path: The file; None writes ``model.safetensors`` into the run folder. A name that ends in
            ``.onnx`` asks for ONNX (extra ``onnx``).
        checkpoint: ``"last"``, ``"best"``, or a file name in the run's checkpoints folder.
        branch: Whose normalisation the plain model gets; None takes the recipe's for evaluation.
        overrides: Changes of the recipe that leave the weights alone, such as ``data.root=WHERE``
            where the images have moved; see `load_run`.
        card: Also write a description of the network here, in Markdown.

    Returns:
        The file written.

    Raises:
        RunFolderError: The folder holds no run, its model has no such branch, or the file cannot
            be written.
        ExportError: ONNX cannot hold the network.
        CheckpointError: The checkpoint cannot be read.
    """
    saved = load_run(run, checkpoint=checkpoint, device="cpu", overrides=overrides)
    branch = saved.branch(branch)
    target = Path(path) if path is not None else saved.folder.root / "model.safetensors"
    facts = saved.facts
    metadata = {
        "format": "pt",
        "model": saved.recipe.model.name,
        "options": json.dumps(saved.recipe.model.options),
        "num_classes": str(saved.recipe.model.num_classes or len(facts.classes)),
        "in_chans": str(facts.channels),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "classes": json.dumps(list(facts.classes)),
        "dataset": facts.name,
        "branch": branch,
        "step": str(saved.step),
        "conadv": conadv.__version__,
    }
    plain = conadv.plain(saved.model, branch if len(saved.branches) > 1 else None)
    with doing(f"exporting {saved.folder.root}"):
        make = partial(_onnx_of, saved) if target.suffix == ".onnx" else safetensors_of
        files = {target: make(plain, metadata)}
        if card is not None:
            text = model_card(saved, target, metadata)
            files[Path(card)] = text.encode("utf-8", "backslashreplace")
    for path, data in files.items():
        _write(path, data)
    return target


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    except OSError as error:
        raise RunFolderError(f"could not write {path}: {error.strerror or error}.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What an exported file says about itself; see `export_run`."""
    if path.suffix == ".onnx":
        import onnx

        properties = onnx.load_from_string(path.read_bytes()).metadata_props
        return {entry.key: entry.value for entry in properties}
    with path.open("rb") as file:  # safe_open takes names in UTF-8 only
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(head["__metadata__"])


def _onnx_of(saved: SavedRun, plain: nn.Module, metadata: dict[str, str]) -> bytes:
    from conadv.trainer.evaluation.onnx import onnx_of  # brings packages of another extra

    facts, recipe = saved.facts, saved.recipe
    shape = images_of(recipe)[0]
    if recipe.data.dataset == "files":
        size = recipe.data.files.eval_size
        shape = (facts.channels, size, size)
    return onnx_of(plain, shape, list(facts.mean), list(facts.std), metadata)


def safetensors_of(plain: nn.Module, metadata: dict[str, str]) -> bytes:
    """An ordinary network's weights as the content of a safetensors file.

    Args:
        plain: The network.
        metadata: What the file says about itself.
    """
    # Two names of one tensor are stored twice: safetensors refuses shared memory.
    tensors = {name: value.contiguous().clone() for name, value in plain.state_dict().items()}
    return save(tensors, metadata)

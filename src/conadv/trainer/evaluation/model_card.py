"""What goes with an exported network: the code that loads it, and a card that describes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conadv.trainer.checkpoint.load_run import SavedRun
from conadv.trainer.recipe import dump_recipe


def loading_code(metadata: Mapping[str, str], weights: Path) -> str:
    """A Python program that makes an exported network and maps images to logits.

    It uses onnxruntime for an ONNX file, otherwise the library that the network comes from; conadv
    where that has no argument for what the network is, or it is one of the project's or the user's
    own.

    Args:
        metadata: Of the exported file; see `export_run`.
        weights: The file.
    """
    model, channels, classes = (metadata[key] for key in ("model", "in_chans", "num_classes"))
    if weights.suffix == ".onnx":
        return f'''\
import numpy as np
import onnxruntime

with open({str(weights)!r}, "rb") as file:
    session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])


def predict(images):
    """Logits (N, {classes}) of images (N, {channels}, H, W) in [0, 1]."""
    return session.run(None, {{"images": np.asarray(images, np.float32)}})[0]
'''
    library, _, name = model.partition("/")
    given: dict[str, Any] = json.loads(metadata["options"])
    options = "".join(f", {key}={value!r}" for key, value in given.items())
    if library == "timm":
        source = "import timm"
        made = f"timm.create_model({name!r}, num_classes={classes}, in_chans={channels}{options})"
    elif library == "torchvision" and channels == "3":
        source = "import torchvision"
        made = f"torchvision.models.get_model({name!r}, num_classes={classes}{options})"
    else:
        source = "from conadv.trainer.models.zoo import create_model"
        last = f", options={given!r}" if given else ""
        made = f"create_model({model!r}, in_chans={channels}, num_classes={classes}{last})"
    version = ""
    if model.startswith("torchvision/mnasnet"):  # it wants to know the version of its format
        version = (
            'weights = type("Weights", (dict,), {"_metadata": {"": {"version": 2}}})(weights)\n'
        )
    return f'''\
import torch
{source}
from safetensors.torch import load

model = {made}
with open({str(weights)!r}, "rb") as file:
    weights = load(file.read())
{version}model.load_state_dict(weights)
model.eval()
mean = torch.tensor({metadata["mean"]}).view(-1, 1, 1)
std = torch.tensor({metadata["std"]}).view(-1, 1, 1)


def predict(images):
    """Logits (N, {classes}) of images (N, {channels}, H, W) in [0, 1]."""
    with torch.no_grad():
        return model((images - mean) / std)
'''


def model_card(saved: SavedRun, weights: Path, metadata: Mapping[str, str]) -> str:
    """A card in Markdown, with the front matter that model hubs read.

    Figures are those that the run folder holds; nothing is measured.

    Args:
        saved: The run.
        weights: The exported file.
        metadata: Its own.
    """
    recipe, facts = saved.recipe, saved.facts
    result = _figures(saved.folder.result)
    found = _figures(saved.folder.root / "evaluation.json")
    rows = {
        "test accuracy": result.get("test_accuracy"),
        "accuracy on training images": result.get("train_accuracy"),
        f"accuracy under FGSM, {found.get('norm')} {_levels(found.get('epsilon'))}": found.get(
            "fgsm_accuracy"
        ),
        f"accuracy under PGD-{found.get('pgd_steps')}, {found.get('norm')} "
        f"{_levels(found.get('epsilon'))}": found.get("pgd_accuracy"),
    }
    measured = [f"| {name} | {value:.2%} |" for name, value in rows.items() if value is not None]
    figures = ["| | |", "|---|---:|", *measured] if measured else ["None was measured."]
    few = ", ".join(facts.classes[:20]) + (" ..." if len(facts.classes) > 20 else "")
    front = {
        "library_name": recipe.model.name.partition("/")[0],
        "tags": ["image-classification", "conadv"],
        "datasets": [facts.name],
    }
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            "---",
            "",
            f"# {recipe.name}",
            "",
            f"{recipe.model.name}, trained on {facts.name} by {recipe.method_label}"
            f" with {recipe.optimizer.name} in {saved.step:,} steps of"
            f" {recipe.batch.global_batch:,} images (seed {recipe.seed}); normalisation of the"
            f" {metadata['branch']} branch.",
            "",
            "## Figures",
            "",
            *figures,
            "",
            "Accuracies are those of this one run. Nothing is known about other images, or about"
            " other attacks than those named.",
            "",
            "## Use",
            "",
            "```python",
            loading_code(metadata, weights).rstrip(),
            "```",
            "",
            f"Outputs are the {len(facts.classes):,} classes in this order: {few}.",
            "",
            "## Training",
            "",
            "```yaml",
            dump_recipe(recipe).rstrip(),
            "```",
            "",
        ]
    )


def _figures(path: Path) -> Mapping[str, Any]:
    """What a file of results holds; nothing if it is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _levels(epsilon: Any) -> str:
    return f"{epsilon * 255:.3g}/255" if isinstance(epsilon, float) else ""

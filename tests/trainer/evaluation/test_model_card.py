"""What `export` prints to load a file does load it, and the card says what the run folder says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import conadv
from conadv.cli import main
from conadv.errors import ExportError, RecipeError
from conadv.trainer.checkpoint.load_run import load_run
from conadv.trainer.evaluation.export import export_run, read_metadata
from conadv.trainer.evaluation.model_card import loading_code
from conadv.trainer.recipe import load_recipe
from conadv.trainer.recipe.yaml12 import parse_yaml
from support.runs import quietly, tiny


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name=cifar/resnet8", "model.options={stem_stride: 2}"),
        ("model.name=torchvision/shufflenet_v2_x0_5",),
        ("model.name=torchvision/mnasnet0_5",),
        ("model.name=torchvision/shufflenet_v2_x0_5", "data.synthetic.channels=1"),
        ("model.name=timm/resnet10t", "model.options={drop_rate: 0.1}", "model.num_classes=3"),
    ],
)
def test_the_code_that_is_printed_runs(
    overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny("train.steps=1", "data.synthetic.size=32", "data.crop_padding=0", *overrides)
    quietly(recipe, tmp_path / "run")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "a.safetensors")]) == 0
    code = capsys.readouterr().out.partition("to load it:\n")[2]
    space: dict[str, Any] = {}
    exec(code, space)  # the user would type it
    saved = load_run(tmp_path / "run")
    pixels = torch.rand(4, saved.facts.channels, 32, 32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (saved.facts.mean, saved.facts.std))
    with torch.no_grad():
        expected = conadv.plain(saved.model, "clean")((pixels - mean) / std)
    assert torch.equal(space["predict"](pixels), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name=cifar/resnet8", "batch.norm_group=4", "train.ema_decay=0.5"),
        ("model.name=timm/vit_tiny_patch16_224", "model.options={img_size: 32, depth: 2}"),
    ],
)
def test_an_onnx_file_gives_the_networks_logits(
    overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="extra onnx")
    quietly(tiny("train.steps=1", "data.synthetic.size=32", *overrides), tmp_path / "run")
    capsys.readouterr()
    target, card = tmp_path / "a.onnx", tmp_path / "card.md"
    assert main(["export", str(tmp_path / "run"), str(target), "--card", str(card)]) == 0
    code = capsys.readouterr().out.partition("to load it:\n")[2]
    assert code.strip() in card.read_text()
    space: dict[str, Any] = {}
    exec(code, space)
    saved = load_run(tmp_path / "run")
    pixels = torch.rand(5, 3, 32, 32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (saved.facts.mean, saved.facts.std))
    with torch.no_grad():
        expected = conadv.plain(saved.model, "clean")((pixels - mean) / std)
    assert torch.allclose(torch.tensor(space["predict"](pixels)), expected, atol=1e-5)
    assert read_metadata(target)["branch"] == "clean"


class ByHand(nn.Module):
    """Leaves PyTorch in the middle, which no file format can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = torch.tensor(images.mean((2, 3)).detach().numpy().tolist())
        return pixels @ self.weight.T


@pytest.mark.slow
def test_what_onnx_cannot_hold_is_said() -> None:
    onnx = pytest.importorskip("conadv.trainer.evaluation.onnx", reason="extra onnx")
    with pytest.raises(ExportError, match=r"cannot be written as ONNX: .*safetensors"):
        onnx.onnx_of(ByHand(), (3, 8, 8), [0.0] * 3, [1.0] * 3, {})


@pytest.mark.slow
def test_an_onnx_file_that_gives_other_logits_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx = pytest.importorskip("conadv.trainer.evaluation.onnx", reason="extra onnx")

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, _: None, given: dict[str, Any]) -> list[Any]:
            return [given["images"].mean((2, 3)) + 0.01]

    monkeypatch.setattr(onnx.onnxruntime, "InferenceSession", Session)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ExportError, match="other logits than the network, by 0.01"):
        onnx.onnx_of(network, (3, 8, 8), [0.0] * 3, [1.0] * 3, {})


not_utf8 = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


@not_utf8
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_names_that_are_not_utf8(suffix: str, tmp_path: Path) -> None:
    run, card = tmp_path / "r\udcff", tmp_path / "c\udcff.md"  # the byte 255
    quietly(tiny("train.steps=1"), run)
    target = export_run(run, run / f"m\udcff{suffix}", card=card)
    code = loading_code(read_metadata(target), target)
    assert code.strip() in card.read_text()
    space: dict[str, Any] = {}
    exec(code, space)
    assert len(space["predict"](torch.rand(2, 3, 8, 8))) == 2


@not_utf8
def test_a_terminal_gets_the_bytes_of_a_name(tmp_path: Path) -> None:
    run = tmp_path / "r\udcff"
    quietly(tiny("train.steps=1"), run)
    done = subprocess.run(
        [sys.executable, "-m", "conadv", "export", str(run)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"written: " + os.fsencode(run) in done.stdout


def test_a_recipe_refuses_what_is_not_utf8() -> None:
    with pytest.raises(RecipeError, match="data.root='ph.udcff': its bytes are not UTF-8, as .*ln"):
        tiny("data.root=ph\udcff")


def test_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = quietly(tiny("train.steps=2"), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--steps", "2"]) == 0
    assert main(["export", str(tmp_path / "run"), "--card", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert f"| test accuracy | {result.test_accuracy:.2%} |" in card
    assert "| accuracy under PGD-2, linf 4/255 |" in card
    front = parse_yaml(card.split("---\n")[1], "front matter")
    assert front["datasets"] == ["synthetic"]
    (tmp_path / "again.yaml").write_text(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(tmp_path / "run")
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})

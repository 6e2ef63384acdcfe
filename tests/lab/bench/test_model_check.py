"""What `conadv models check` finds, and that it finds it."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.cli import main
from conadv.errors import ConadvError, RecipeError
from conadv.lab.bench import model_check, model_checks
from conadv.lab.bench.model_check import CheckedModel, check_model
from conadv.lab.bench.model_checks import (
    Results,
    Target,
    check_models,
    listed,
    markdown_table,
    summary,
    targets,
)
from conadv.trainer.models.names import model_names
from conadv.trainer.models.zoo import family, normalisations
from support.fake_checks import fake_check

RESULTS = Path(__file__).parents[3] / "benchmarks/results/models-check.json"


# -- one network -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds", "split", "layers"),
    [
        ("cifar/resnet8", "batch", "batch", 7),
        ("timm/mobilenetv2_035", "batch", "batch", 52),
        ("timm/test_vit", "layer", "layer", 13),
        ("torchvision/squeezenet1_1", "", "", 0),
    ],
)
def test_networks_that_work(name: str, kinds: str, split: str, layers: int) -> None:
    size = 160 if name == "timm/test_vit" else 32
    row = check_model(name, size)
    assert row.works, row.reason
    assert (row.normalisation, row.split, row.split_layers) == (kinds, split, layers)
    assert (row.reason, row.image_size) == ("", size)
    assert row.parameters > 10_000


class Small(nn.Module):
    """A network with two batch norms, the second behind a ReLU."""

    def __init__(self, classes: int = model_check.CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))  # type: ignore[no-any-return]


class AroundTheLayer(Small):
    """Uses a norm's attributes instead of calling it: every branch gets the clean parameters."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        weight, bias = self.bn1.weight, self.bn1.bias
        y = nn.functional.batch_norm(y, None, None, weight, bias, True)
        return self.fc(self.bn2(self.conv2(y)).mean((2, 3)))  # type: ignore[no-any-return]


class Detached(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x.detach() * 1.0))  # type: ignore[no-any-return]


class Random(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(())  # type: ignore[no-any-return]


class Overflows(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * float("inf") if self.training else y  # type: ignore[no-any-return]


class OneSizeOnly(Small):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 224:
            raise AssertionError("Input height (32) doesn't match model (224).\nMore lines.")
        return super().forward(x)  # type: ignore[no-any-return]


class Unsaved(Small):
    """Its output depends on a number that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (AroundTheLayer, "train: 2 parameters have no gradient, such as bn1.bias"),
        (Detached, "train: .*"),
        (Random, r"convert: the split network and the original differ by up to 0\.\d+"),
        (Overflows, "train: the loss is nan"),
        (OneSizeOnly, r"build: AssertionError: Input height \(32\) doesn't match model \(224\)\."),
        (Unsaved, r"compare: plain\(\) and the exported network differ by up to .*"),
    ],
)
def test_what_fails_says_where(
    network: Callable[[], nn.Module], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_check, "create_model", lambda *a, **k: network())
    row = check_model("cifar/fabricated", 32)
    assert not row.works
    assert re.fullmatch(reason, row.reason), row.reason


def test_the_wrong_branch_in_the_export_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = conadv.plain
    monkeypatch.setattr(model_check, "create_model", lambda *a, **k: Small())
    assert check_model("cifar/fabricated", 32).works
    monkeypatch.setattr(conadv, "plain", lambda model, branch=None: real(model, "adversarial"))
    row = check_model("cifar/fabricated", 32)
    assert row.reason.startswith("compare: the split network and the exported one differ")


def test_kinds_of_normalisation() -> None:
    class EvoNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    class NormThenLinear(nn.Sequential):
        pass

    assert normalisations(nn.Linear(3, 3)) == []
    assert normalisations(nn.Sequential(nn.GroupNorm(1, 3), nn.BatchNorm1d(3))) == [
        "batch",
        "group",
    ]
    assert normalisations(nn.Sequential(nn.RMSNorm(3), EvoNorm())) == ["rms", "other"]
    assert normalisations(NormThenLinear(nn.LayerNorm(3), nn.Linear(3, 3))) == ["layer"]


# -- many networks -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_a_row() -> None:
    wanted = [Target("timm/dies"), Target("timm/good", 32, {"a": 1}), Target("timm/hangs")]
    died, good, hung = check_models(wanted, time_limit=3, check=fake_check)
    assert (died.works, died.reason) == (False, "its process ended with signal 9, out of memory?")
    assert good.works and (good.image_size, good.options) == (32, {"a": 1})
    assert (hung.works, hung.reason) == (False, "over the time limit of 3 s")


def row(name: str, works: bool = True, **more: Any) -> CheckedModel:
    return CheckedModel(name, works, "" if works else "train: broken | badly", 64, **more)


VERSIONS = {"torch": "2", "torchvision": "0.2", "timm": "1", "conadv": "0.1"}


def test_results_continue(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.json"
    wanted = [Target("timm/a"), Target("timm/b"), Target("timm/c")]
    first = Results(VERSIONS, path)
    assert first.missing(wanted) == wanted
    first.add(row("timm/b", works=False))
    first.add(row("timm/a"))
    again = Results(VERSIONS | {"command": "another"}, path)
    assert again.missing(wanted) == wanted[2:]
    assert again.missing(wanted, failed_too=True) == wanted[1:]
    assert again.missing([Target("timm/a", 96), Target("timm/a", 64, {"img_size": 64})]) == [
        Target("timm/a", 96),
        Target("timm/a", 64, {"img_size": 64}),
    ]
    again.add(row("timm/b"))
    content = json.loads(path.read_text())
    assert content["environment"] == VERSIONS
    rows = content["rows"]
    assert [(r["name"], r["works"]) for r in rows] == [("timm/a", True), ("timm/b", True)]


def test_results_of_other_versions_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    Results(VERSIONS, path).add(row("timm/a"))
    with pytest.raises(ConadvError, match=r"made with timm 1, and here is 2.*another file"):
        Results(VERSIONS | {"timm": "2"}, path)
    path.write_text('{"rows": []}')
    with pytest.raises(ConadvError, match="is no result of `conadv models check`"):
        Results(VERSIONS, path)


def test_the_table() -> None:
    rows = [
        vars(row("timm/b", False, normalisation="layer", split="layer", split_layers=3)),
        vars(row("timm/a", normalisation="batch", split="batch", split_layers=2)),
    ]
    assert markdown_table(rows).splitlines()[2:] == [
        "| timm/a | batch | 2 batch | 64 |  | works |",
        r"| timm/b | layer | 3 layer | 64 |  | train: broken \| badly |",
    ]
    assert summary(rows) == "1 of 2 networks work (50.0%)"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fabricated(wanted: Iterable[Target], **options: Any) -> Iterator[CheckedModel]:
        assert options == {"time_limit": 9}
        for target in wanted:
            asked.append(target.name)
            yield row(target.name, target.name != "timm/resnet34")

    monkeypatch.setattr(model_checks, "check_models", fabricated)
    names = ["timm/resnet26", "timm/resnet34", "timm/resnet18"]
    out, page = tmp_path / "out.json", tmp_path / "table.md"
    options = ["--size=64", "--time-limit=9", f"--json={out}"]
    with monkeypatch.context() as patched:
        patched.setattr(Results, "add", _interrupted_after_one(Results.add))
        assert main(["models", "check", *names, *options]) == 130
    said = capsys.readouterr().err
    assert f"interrupted after 1 networks; the same command continues from {out}" in said
    assert main(["models", "check", *names, *options, f"--markdown={page}"]) == 1
    told = capsys.readouterr()
    assert asked == names
    assert "timm/resnet34: train: broken" in told.err
    assert "2 of 3 networks work (66.7%)" in told.out
    assert page.read_text().count("\n") == 5
    assert main(["models", "check", "timm/resnet26", *options]) == 0  # nothing left to do
    assert asked == names
    assert main(["models", "check", "timm/resnet34", *options, "--again"]) == 1
    assert asked == [*names, "timm/resnet34"]


def _interrupted_after_one(real: Callable[..., None]) -> Callable[..., None]:
    def add(self: Results, row: CheckedModel) -> None:
        real(self, row)
        raise KeyboardInterrupt

    return add


def test_the_list_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "MobileNetV2_03", "--norms"]) == 0
    assert capsys.readouterr().out.split() == ["timm/mobilenetv2_035", "batch"]
    assert main(["models", "list", "squeezenet"]) == 0
    assert capsys.readouterr().out.split() == [
        "torchvision/squeezenet1_0",
        "torchvision/squeezenet1_1",
    ]
    assert main(["models", "list", "no-such"]) == 1


# -- the list that comes with the package ------------------------------------------------------


def test_every_family_is_listed() -> None:
    names = [target.name for target in listed()]
    assert set(names) <= set(model_names())
    assert sum(name.startswith("timm/") for name in names) >= 150
    assert sum(name.startswith("torchvision/") for name in names) >= 20
    every = {family(name) for name in model_names("timm/")}
    # They have no batch norm, and no member of less than 160 million parameters.
    assert every - {family(name) for name in names} == {"deepseek_vit", "gemma4_vit"}


def test_names_out_of_the_list() -> None:
    assert targets(["timm/deit_tiny_patch16_224"]) == [
        Target("timm/deit_tiny_patch16_224", 64, {"img_size": 64})
    ]
    assert targets(["timm/resnet101", "cifar/resnet8", "torchvision/vgg16", "timm/nope"]) == [
        Target("timm/resnet101", 224),
        Target("cifar/resnet8", 32),
        Target("torchvision/vgg16", 224),
        Target("timm/nope", 224),
    ]
    with pytest.raises(RecipeError, match="timm/resnet50"):
        targets(["resnet50"])


def test_the_committed_result_is_of_the_whole_list() -> None:
    found = json.loads(RESULTS.read_text())
    rows = {r["name"]: r for r in found["rows"]}
    wanted = {t.name: (t.image_size, t.options) for t in listed()}
    assert {name: (r["image_size"], r["options"]) for name, r in rows.items()} == wanted
    works = [r for r in rows.values() if r["works"]]
    assert len(works) >= 0.97 * len(rows)
    assert all(bool(r["reason"]) != r["works"] for r in rows.values())
    assert all(r["split_layers"] > 0 for r in works if "batch" in r["normalisation"])

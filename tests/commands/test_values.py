"""What is typed is taken as meant, or refused in words; whose error it is decides what is shown."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from conadv import cli
from conadv.attack import Attack
from conadv.cli import main
from conadv.errors import NonFiniteError, RecipeError
from conadv.trainer.build import build
from conadv.trainer.models.names import SMALL_NAMES, model_names
from conadv.trainer.models.small_resnet import SMALL_NETWORKS
from conadv.trainer.run.result import Result
from support.runs import quietly, tiny

# -- text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["/data #1", "*", "@here", "[old]", "007", "1e5", "true", "a: b", "{x}", "it's", " x"]
)
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert tiny(f"data.root={text}").data.root == text
    assert tiny(f"description={text}").description == text


def test_names_with_leading_zeros_quotes_and_nothing() -> None:
    assert tiny("name=001").name == "001"
    assert tiny("name='001'").name == tiny('name="001"').name == "001"
    assert tiny("data.root=null").data.root is None
    assert tiny("model.freeze=[*.bias, layer1.*]").model.freeze == ("*.bias", "layer1.*")
    assert tiny("model.freeze=[]").model.freeze == ()
    assert tiny("attack.target=null").attack.target is None
    assert tiny("optimizer.options.power=1e-3").optimizer.options == {"power": 0.001}


# -- whose error -------------------------------------------------------------------------------


def caught(action: object) -> BaseException:
    with pytest.raises(ValueError) as found:
        action()  # type: ignore[operator]
    return found.value


def test_the_projects_own_errors_are_told_from_those_of_others() -> None:
    ours = caught(lambda: Attack(epsilon=-1.0))
    assert cli.describe(ours) == (f"error: {ours}", cli.USAGE)
    for theirs in (caught(lambda: torch.nn.Dropout(p=3)), caught(lambda: int("x"))):
        message, code = cli.describe(theirs, "running conadv")
        assert message is not None and code == 1
        assert message.startswith(f"error: ValueError: {theirs} (while running conadv)\nIt comes ")
    assert cli.describe(ValueError("never raised")) == (None, 1)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("1 / 0", False),
        ("None.x", False),
        ("torch.zeros(2).view(3)", True),
        ("bytearray(2**62)", True),
        ("raise RuntimeError", False),
        ("zlib.decompress(b'')", True),
    ],
)
def test_compiled_code_is_not_taken_for_a_bug_of_this_package(line: str, shown: bool) -> None:
    """It has no frame of its own: the last one is the line that called it."""
    lines = Path(cli.__file__).read_text().splitlines()
    kind = line.partition(" ")[0] if line.startswith("raise") else "import"
    place = next(i for i, there in enumerate(lines) if there.strip().startswith(kind))
    code_there = compile("\n" * place + line, cli.__file__, "exec")
    with pytest.raises(Exception) as found:
        exec(code_there, {"torch": torch, "zlib": zlib})
    message, code = cli.describe(found.value, "running conadv")
    assert (message is not None, code) == (shown, 1)


def test_a_network_that_cannot_take_the_images(tmp_path: Path) -> None:
    recipe = tiny("model.name=torchvision/vit_b_32", "data.synthetic.size=32")
    with pytest.raises(RecipeError, match="does not take images of 32 x 32") as found:
        quietly(recipe, tmp_path / "run")
    assert "give model.options.image_size=32" in str(found.value)
    assert not (tmp_path / "run").exists()


def test_trying_a_network_changes_nothing() -> None:
    model = build(tiny()).trainer.model
    assert model.training
    assert all(
        not name.endswith("num_batches_tracked") or value == 0
        for name, value in model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("optimizer.lr=1e300", "optimizer.lr='1e300'|optimizer.lr=1e"),
        ("train.clip_grad_norm=1e40", "more than 1e"),
        ("optimizer.options={lr: 3}", "set optimizer.lr=3 instead"),
        ("optimizer.options={weight_decay: 3}", "set optimizer.weight_decay=3"),
        ("optimizer.options={momentum: 0.5}", "set optimizer.momentum=0.5"),
    ],
)
def test_values_that_contradict_or_overflow(given: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny(given)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "smoke", "--max-restarts", "2"], "Give --devices N"),
        (["plan", "smoke", "--utilisation", "7"], "at most 1"),
    ],
)
def test_options_that_contradict(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_ends_with_void_steps_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / "late_nan.py").write_text(
        "import torch\n"
        "calls = []\n"
        "def loss(logits, labels):\n"
        "    calls.append(1)\n"
        "    value = torch.nn.functional.cross_entropy(logits, labels)\n"
        "    return value * (float('nan') if len(calls) > 8 else 1)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        recipe = tiny("train.loss=late_nan:loss", "train.nonfinite=skip", "method.schedule=vanilla")
        with pytest.raises(NonFiniteError, match=r"the last 2 step\(s\) were void"):
            quietly(recipe, tmp_path / "run")
    finally:
        sys.path.remove(str(tmp_path))
    assert Result.read(tmp_path / "run" / "result.json").status == "diverged"


# -- names and help ----------------------------------------------------------------------------


def test_names_in_sources_are_those_of_the_libraries() -> None:
    import timm
    import torchvision

    models = torchvision.models
    assert tuple(SMALL_NETWORKS) == SMALL_NAMES
    assert model_names("torchvision/") == [
        f"torchvision/{name}" for name in sorted(models.list_models(module=models))
    ]
    assert model_names("timm/") == [f"timm/{name}" for name in sorted(timm.list_models())]


def test_models_are_listed_without_importing_what_has_them() -> None:
    code = (
        "import sys; from conadv.cli import main; main(['models', 'list', 'resnet50'])\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "timm/resnet50\n" in done.stdout and "torchvision/resnet50\n" in done.stdout


@pytest.mark.parametrize("command", [["-h"], ["train", "-h"], ["recipes", "show", "-h"]])
def test_short_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("Usage: conadv")


def test_shell_completion() -> None:
    environment = {
        **os.environ,
        "_CONADV_COMPLETE": "complete_bash",
        "COMP_WORDS": "conadv tr",
        "COMP_CWORD": "1",
    }
    code = "import sys; from conadv.cli import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.split() == ["train"], done.stderr

"""The command line: what it hands on, what it prints, how it ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import conadv
from conadv import cli
from conadv.cli import main
from conadv.errors import DataError, Interrupted, install_command
from conadv.trainer.recipe import dump_recipe, load_recipe, recipe_names

Fake = Callable[..., dict[str, Any]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a function in the place of one that does the work; returns what it was called with."""

    def put(module: str, name: str, outcome: Any) -> dict[str, Any]:
        called: dict[str, Any] = {}

        def stand_in(*arguments: Any, **options: Any) -> Any:
            called.update(arguments=arguments, **options)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: stand_in}))
        return called

    return put


RESULT = SimpleNamespace(summary="test accuracy 81.25%")


# -- the frame ---------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"conadv {conadv.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], [], ["recipes"], ["bench", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == (0 if arguments[-1:] == ["--help"] else 2)
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: conadv")
    assert "error" not in shown


def test_every_command_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.partition("Commands:")[2].split("\n")
    found = {words[0]: words[1:] for words in map(str.split, lines) if words}
    expected = {"quickstart", "train", "evaluate", "analyse", "export", "plan"}
    expected |= {"lr-find", "study", "report", "recipes", "data", "models", "bench"}
    assert set(found) == expected
    assert all(words and words[-1].endswith(".") for words in found.values()), "one is cut off"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "smoke"], "'train'"),
        (["recipes", "lst"], "'list'"),
        (["train"], "RECIPE"),
        (["train", "smok"], "Did you mean smoke?"),
        (["train", "smoke", "optimizer.momentun=1"], "Did you mean optimizer.momentum"),
        (["train", "smoke", "attack.epsilon=4"], "did you mean epsilon=4/255?"),
        (["train", "smoke", "--fast"], "--fast"),
        (["recipes", "show", "nothing.yaml"], "no such file"),
        (["bench", "steps", "--dtype", "int8"], "allowed are bf16, fp16, fp32"),
        (["bench", "steps", "--batch", "0"], "--batch"),
        (["bench", "optimizers", "--device", "tpu9"], "allowed are auto, cpu"),
        (["evaluate", "x", "--epsilon", "4"], "did you mean epsilon=4/255?"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    arguments: list[str], said: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in (
        ("conadv.trainer.start", "train"),
        ("conadv.trainer.evaluation.evaluate", "evaluate_run"),
        ("conadv.lab.bench.steps", "run"),
        ("conadv.lab.bench.optimizers", "run"),
    ):
        fake(module, name, AssertionError("must not be reached"))
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_a_bug_keeps_its_traceback(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conadv.trainer.start", SimpleNamespace(train=None))
    with pytest.raises(TypeError):
        main(["train", "smoke"])
    fake("conadv.trainer.start", "train", DataError("no data"))
    monkeypatch.setenv("CONADV_TRACEBACK", "1")
    with pytest.raises(DataError):
        main(["train", "smoke"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no data. Fetch it."), 2, "error: no data. Fetch it.\n"),
        (Interrupted("stopped. To continue: conadv train"), 130, "stopped. To continue: conadv"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(28, "No space left on device", "a.pt"), 2, "a.pt: No space left on device"),
        (ModuleNotFoundError("No module", name="timm.data"), 2, install_command("train")),
        (ModuleNotFoundError("No module", name="jinja2"), 2, install_command("train", "report")),
    ],
)
def test_how_it_ends(
    error: BaseException, code: int, said: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("conadv.trainer.start", "train", error)
    assert main(["train", "smoke"]) == code
    assert said in capsys.readouterr().err


def test_out_of_memory_says_what_to_lower() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    message, code = cli.describe(OutOfMemoryError("tried to allocate 3 GiB"))
    assert code == 2
    assert message is not None
    assert "batch.micro_batch" in message


def test_without_the_trainers_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pip install conadv` alone brings no typer."""
    for name in [n for n in sys.modules if n.split(".")[:2] == ["conadv", "commands"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(conadv, "commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["train", "smoke"]) == 2
    shown = capsys.readouterr().err
    command = install_command("train")
    assert shown == f"error: typer is not installed, and this needs it. Type: {command}\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["study", "--help"], 0),
        (["train", "--no-such-option"], 2),
        (["trian", "smoke"], 2),
        (["train", "smok"], 2),
        (["train", "smoke", "optimiser.lr=1"], 2),
        (["train", "smoke", "model.name=resnet8"], 2),
        (["train", "smoke", "model.name=cifar/resnet9000"], 2),
        (["train", "smoke", "optimizer.name=admaw"], 2),
        (["train", "smoke", "train.loss=focl"], 2),
        (["train", "smoke", "logging.loggers=[wandbb]"], 2),
        (["lr-find", "smok"], 2),
        (["plan", "smok"], 2),
        (["study", "smok"], 2),
        (["study", "smoke", "--status"], 2),
        (["data", "fetch", "cifar"], 2),
        (["evaluate", "no-such-run"], 2),
        (["evaluate", "RUN", "--branch", "advresarial"], 2),
        (["evaluate", "RUN", "attack.epslion=0.1"], 2),
        (["evaluate", "RUN", "--epsilon", "4/2S5"], 2),
        (["evaluate", "RUN", "--device", "coda"], 2),
        (["analyse", "no-such-run"], 2),
        (["analyse", "RUN", "--only", "sharpnes"], 2),
        (["analyse", "RUN", "--split", "trian"], 2),
        (["analyse", "RUN", "optimizer.lr=1"], 2),
        (["analyse", "data.root=there"], 2),
        (["export", "RUN", "--branch", "clena"], 2),
        (["models", "check", "resnet50"], 2),
        (["models", "check", "cifar/resnet9000"], 2),
        (["models", "chekc"], 2),
        (["bench", "steps", "--dtype", "fp23"], 2),
        (["bench", "steps", "--device", "gpu"], 2),
        (["bench", "steps", "--model", "tim/resnet50"], 2),
        (["bench", "optimizers", "--dtype", "fp23"], 2),
        (["bench", "optimizers", "--model", "resnet50"], 2),
        (["study", "smoke", "--launcher", "slrum"], 2),
        (["quickstart", "--ot", "here"], 2),
        (["report", "no-such-folder"], 2),
        (["report", "."], 2),
        (["data", "list"], 0),
        (["recipes", "list"], 0),
        (["recipes", "show", "smoke"], 0),
    ],
)
def test_what_trains_nothing_imports_no_torch(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    """Torch takes seconds to import; help, lists and typing errors are answered without it."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("smoke")))
    arguments = [str(tmp_path) if word == "RUN" else word for word in arguments]
    script = (
        "import sys; from conadv.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'jinja2', 'tensorboard'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


def test_a_mistyped_recipe_is_answered_with_the_nearest_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "fashion-resnet8-recylced"]) == 2
    shown = capsys.readouterr().err
    assert "Did you mean fashion-resnet8-recycled" in shown
    assert "conadv recipes list" in shown
    assert sum(name in shown.replace(",", " ").split() for name in recipe_names()) <= 3


def test_a_closed_pipe_is_no_error() -> None:
    """`conadv recipes show smoke | head -1` is quiet."""
    command = [sys.executable, "-m", "conadv", "recipes", "show", "smoke"]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    assert shown.stderr.read() == b""
    shown.stderr.close()
    assert shown.wait() == 1


# -- recipes -----------------------------------------------------------------------------------


def test_recipes_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    shown = capsys.readouterr().out
    for name in recipe_names():
        assert name in shown


def test_recipes_show_prints_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "fashion-resnet8-recycled", "optimizer.lr=3"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(path) == load_recipe("fashion-resnet8-recycled", ["optimizer.lr=3"])


# -- train, evaluate, export -------------------------------------------------------------------


def test_train_hands_on_the_recipe(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    called = fake("conadv.trainer.start", "train", RESULT)
    assert main(["train", "smoke", "seed=3", "optimizer.lr=0.5"]) == 0
    recipe, folder = called["arguments"]
    assert recipe == load_recipe("smoke", ["seed=3", "optimizer.lr=0.5"])
    assert folder == Path("runs/smoke-3")
    assert called["resume"] is False
    shown = capsys.readouterr().out
    assert RESULT.summary in shown
    assert "conadv evaluate runs/smoke-3" in shown
    assert "conadv export runs/smoke-3" in shown
    assert "tensorboard --logdir runs" in shown


def test_train_resumes_in_a_named_folder(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    called = fake("conadv.trainer.start", "train", RESULT)
    folder = tmp_path / "my run"
    assert main(["train", "--resume", "smoke", "--out", str(folder)]) == 0
    assert called["arguments"][1] == folder
    assert called["resume"] is True
    assert f"conadv evaluate '{folder}'" in capsys.readouterr().out


def test_a_run_folder_is_its_own_recipe(
    tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["recipes", "show", "smoke", "seed=5"])
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    called = fake("conadv.trainer.start", "train", RESULT)
    assert main(["train", str(tmp_path), "--resume"]) == 0
    assert called["arguments"] == (load_recipe("smoke", ["seed=5"]), tmp_path)


FOUND = {
    "top5_accuracy": None,
    "step": 14,
    "branch": "clean",
    "norm": "linf",
    "epsilon": 4 / 255,
    "test_accuracy": 0.5,
    "test_loss": 1.25,
    "fgsm_accuracy": 0.25,
    "pgd_steps": 20,
    "pgd_restarts": 2,
    "pgd_accuracy": 0.125,
    "attacked_images": 64,
}


def test_evaluate(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    called = fake("conadv.trainer.evaluation.evaluate", "evaluate_run", FOUND)
    path = tmp_path / "new" / "found.json"
    arguments = ["--epsilon", "4/255", "--steps", "20", "--restarts", "2", "--json", str(path)]
    run = tmp_path / "run"
    run.mkdir()
    recipe = load_recipe("smoke", ["method.schedule=recycled"])
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    assert main(["evaluate", str(run), *arguments, "--branch", "adversarial"]) == 0
    assert called["arguments"] == (run,)
    assert called["epsilon"] == 4 / 255
    assert (called["steps"], called["restarts"], called["branch"]) == (20, 2, "adversarial")
    assert json.loads(path.read_text()) == FOUND
    shown = capsys.readouterr().out
    assert "50.00%" in shown
    assert "PGD-20" in shown
    assert "linf 4/255" in shown


# -- bench, data, quickstart -------------------------------------------------------------------

ROWS = [
    {"schedule": "vanilla", "flops_ratio": 1.0, "step_ratio": {"median": 1, "p10": 1, "p90": 1}},
    {
        "schedule": "recycled",
        "flops_ratio": 2.008,
        "step_ratio": {"median": 2.01, "p10": 1.99, "p90": 2.05},
        "memory_ratio": None,
    },
]


def test_bench_steps(tmp_path: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    called = fake("conadv.lab.bench.steps", "run", {"rows": ROWS, "environment": {"torch": "2"}})
    path = tmp_path / "steps.json"
    arguments = ["--model", "cifar/resnet20", "--batch", "64", "--dtype", "fp32", "--no-memory"]
    assert main(["bench", "steps", *arguments, "--json", str(path)]) == 0
    assert called["arguments"] == ("cifar/resnet20", 64, "cpu", "float32")
    assert called["memory"] is False
    assert json.loads(path.read_text())["rows"] == ROWS
    shown = capsys.readouterr().out
    assert "2.010 [1.990, 2.050]" in shown


def test_data_list_has_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    from conadv.trainer.recipe.describe import all_fields

    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for name in all_fields()["data.dataset"].allowed.split(", "):
        assert f" {name.removeprefix('or ')} " in shown


def test_quickstart(tmp_path: Path, fake: Fake) -> None:
    called = fake("conadv.lab.quickstart", "run", None)
    assert main(["quickstart", "--out", str(tmp_path)]) == 0
    assert called["arguments"] == (tmp_path,)


# -- all together ------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_recipe_to_exported_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    small = ["data.synthetic.train_images=144", "train.steps=2", "evaluation.robust_images=16"]
    train = ["train", "smoke", *small, "hardware.threads=1", "--out", str(folder)]
    assert main(train) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 2
    assert load_recipe(folder) == load_recipe("smoke", [*small, "hardware.threads=1"])
    capsys.readouterr()
    assert main(train) == 2, "the folder holds a run"
    assert "already holds a run" in capsys.readouterr().err
    assert main([*train, "optimizer.lr=3", "--resume"]) == 2
    assert "optimizer.lr (was 2.0, now 3.0)" in capsys.readouterr().err
    assert main(["train", str(folder), "--resume"]) == 0
    assert main(["evaluate", str(folder), "--steps", "2", "--branch", "adversarial"]) == 0
    assert "branch adversarial" in capsys.readouterr().out
    assert main(["export", str(folder)]) == 0

    from safetensors.torch import load_file

    from conadv.trainer.models.zoo import create_model

    model = create_model("cifar/resnet8", in_chans=3, num_classes=4)
    model.load_state_dict(load_file(folder / "model.safetensors"))


def test_data_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "synthetic"]) == 0
    assert "512 training and 128 test images, 16 x 16, 3 channel(s)" in capsys.readouterr().out
    assert main(["data", "fetch", "cifar"]) == 2
    assert "Did you mean cifar10?" in capsys.readouterr().err


def test_recipes_and_data_know_the_same_data_sets() -> None:
    from conadv.trainer.data import DATASETS
    from conadv.trainer.recipe.describe import all_fields

    allowed = all_fields()["data.dataset"].allowed.split(", ")
    own = "or module:attribute"
    assert allowed == [*DATASETS, "files", own], "files are read where they lie, not fetched"

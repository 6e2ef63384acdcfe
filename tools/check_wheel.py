"""Does the wheel work where nothing else is: alone, and with each extra?

    python tools/check_wheel.py                  # offline: the packages of this environment
    python tools/check_wheel.py --install        # for a release: pip installs them, gigabytes

Each case is an environment of its own. Offline it is given this one's packages, but only those
that the wheel's own metadata ask for can be imported, so what it forgets is missing here too.
With --install pip makes one with what the library alone needs, and each extra's environment sees
that one's packages beside those that pip puts into its own: torch is installed once, and nothing
is there that the wheel did not ask for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

LOOP = """
import torch, conadv
from conadv.optim import LARS, param_groups
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
model = conadv.split_norms(network)
adversary = conadv.Adversary(model, conadv.Attack(4 / 255, mean=0.5, std=0.25))
optimizer = LARS(param_groups(model, weight_decay=5e-5), lr=1.0)
for _ in range(3):
    images, labels = (torch.rand(4, 3, 6, 6) - 0.5) / 0.25, torch.randint(64, (4,))
    loss = adversary.loss(images, labels, torch.nn.functional.cross_entropy)
    loss.backward()
    adversary.collect()
    optimizer.step()
    optimizer.zero_grad()
assert adversary.diagnostics.adversarial_loss is not None
"""
SMOKE: dict[str, str] = {
    "": LOOP
    + """
from conadv.cli import main
assert main(["recipes", "list"]) == 2  # and says what is missing
for name in ("lightning", "accelerate", "transformers", "timm"):
    try:
        __import__(f"conadv.integrations.{name}")
    except ModuleNotFoundError as error:
        assert "pip install" in str(error) and "\\n" not in str(error)
    else:
        raise AssertionError(f"{name} is not asked for, and there")
""",
    "train": """
from conadv.cli import main
from conadv.trainer.models.zoo import create_model
from conadv.trainer.recipe import load_recipe
assert not main(["recipes", "list"])
load_recipe("smoke")
create_model("cifar/resnet8", in_chans=3, num_classes=10)
""",
    "imagenet": "import scipy.io",
    "huggingface": "import datasets",
    "onnx": "import conadv.trainer.evaluation.onnx",
    "wandb": "import conadv.trainer.run.loggers.wandb",
    "mlflow": "import conadv.trainer.run.loggers.mlflow",
    "report": "import conadv.lab.report.page",
    "study": "import conadv.lab.study.search",
    "sharpness": "import conadv.lab.analysis; from curvlinops import HessianLinearOperator",
    "lightning": "import conadv.integrations.lightning",
    "accelerate": "import conadv.integrations.accelerate",
    "transformers": "import conadv.integrations.transformers",
    "timm": "import conadv.integrations.timm",
}
"""What has to run with each extra; "" is none."""
WITH_TRAIN = {"imagenet", "huggingface", "onnx", "wandb", "mlflow", "report", "study", "sharpness"}
"""Extras of the trainer and the laboratory, which are no use without it."""

GATE = """
import sys
ALLOWED, NAMES = {allowed!r}, {names!r}
class Gate:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if path is None and name not in ALLOWED:
            return None
        return self.finder.find_spec(name, path, target)
    def find_distributions(self, *arguments, **options):
        find = getattr(self.finder, "find_distributions", lambda *a, **o: ())
        for one in find(*arguments, **options):
            if one.metadata["Name"].lower().replace("_", "-").replace(".", "-") in NAMES:
                yield one
sys.meta_path[:] = [Gate(finder) for finder in sys.meta_path]
"""


def build(folder: Path) -> Path:
    """The wheel that the build backend makes of this checkout."""
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    [wheel] = folder.glob("*.whl")
    return wheel


def distributions(requirements: list[str]) -> set[str]:
    """Names of the distributions that the requirements bring, as installed here."""
    found: set[str] = set()
    queue = [(Requirement(text), "") for text in requirements]
    done: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        asked = frozenset({"", *requirement.extras})
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not wanted or (name, asked) in done:
            continue
        done.add((name, asked))
        found.add(name)
        try:
            further = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(
                f"error: {name} is not installed here: pip install -e '.[dev]'"
            ) from None
        queue += [(Requirement(text), one) for text in further for one in asked]
    return found


def modules(names: set[str]) -> set[str]:
    """Top-level modules of these distributions."""
    owners = importlib.metadata.packages_distributions()
    return {m for m, ds in owners.items() if any(canonicalize_name(d) in names for d in ds)}


def requirements_of(wheel: Path, extras: list[str]) -> list[str]:
    """What the wheel's metadata ask for."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    texts = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    found = []
    for text in texts:
        requirement = Requirement(text)
        if any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ["", *extras]
        ):
            requirement.marker = None
            found.append(str(requirement))
    return found


def site_of(folder: Path) -> Path:
    """Where packages of the environment in this folder are."""
    paths = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", paths))


def installed(folder: Path, wheel: Path, extras: list[str], below: Path | None) -> Path:
    """An environment into which pip installs the wheel and the extras; returns its Python.

    Args:
        folder: of it.
        wheel: to install.
        extras: of the wheel.
        below: folder of an environment whose packages this one sees, after its own.
    """
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    python = python_of(folder)
    if below is not None:
        (site_of(folder) / "z-below.pth").write_text(f"{site_of(below)}\n")
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    return python


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def gated(folder: Path, wheel: Path, extras: list[str]) -> Path:
    """An environment that has of this one's packages what the wheel asks for; its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = site_of(folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    # The paths come after the wheel; .pth files in them, as of an editable conadv, are not read.
    (site / "z-packages.pth").write_text("\n".join([*sorted(ours), "import _gate", ""]))
    names = distributions(requirements_of(wheel, extras)) | {"conadv"}
    allowed = modules(names) | {"conadv", "_gate"}
    allowed |= {*sys.stdlib_module_names, sysconfig._get_sysconfigdata_name()}  # type: ignore[attr-defined]
    (site / "_gate.py").write_text(GATE.format(allowed=allowed, names=names))
    return python_of(folder)


def check(
    wheel: Path, extra: str, folder: Path, *, install: bool, below: Path | None = None
) -> None:
    """Raise CalledProcessError unless the smoke test of the extra passes."""
    extras = ["train", extra] if extra in WITH_TRAIN else [extra] if extra else []
    if install:
        python = installed(folder, wheel, extras, below)
    else:
        python = gated(folder, wheel, extras)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([python, "-c", SMOKE[extra]], cwd=folder, env=kept, check=True)


def main() -> int:
    """Check all extras, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", nargs="*", default=list(SMOKE), help='"" is none')
    parser.add_argument("--install", action="store_true", help="let pip install everything anew")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        wheel, below = build(Path(folder)), Path(folder) / "below"
        if options.install:
            installed(below, wheel, [], None)
        for extra in options.extras:
            place = Path(folder) / f"with-{extra or 'nothing'}"
            try:
                check(wheel, extra, place, install=options.install, below=below)
            except subprocess.CalledProcessError:
                failed.append(extra)
            shutil.rmtree(place, ignore_errors=True)  # up to gigabytes each
            print(f"{extra or 'the library alone'}: {'FAILED' if extra in failed else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

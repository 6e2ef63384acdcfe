"""The package as others meet it: what an import costs, who may import whom, what a wheel holds."""

import ast
import email
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import conadv

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "conadv"


# -- what an import brings ---------------------------------------------------------------------


def requirements(names: list[str]) -> set[str]:
    """Top-level modules of the distributions and of everything they require."""
    seen: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [re.split(r"[\s;<>=!~\[(]", n)[0] for n in needed if "extra ==" not in n]
    owners = importlib.metadata.packages_distributions()
    return {
        module
        for module, distributions in owners.items()
        if any(d.lower().replace("_", "-") in seen for d in distributions)
    }


def imported(code: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tests",
        timeout=120,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    # Part of the standard library, but each platform has one of its own name.
    return {name for name in loaded if not name.startswith("_sysconfigdata")}


@pytest.mark.parametrize("module", ["conadv", "conadv.optim", "conadv.lab.planning"])
def test_the_library_imports_torch_and_numpy_alone(module: str) -> None:
    before = imported("import torch, numpy")
    after = imported(f"import {module}")
    allowed = before | {"conadv"} | set(sys.stdlib_module_names) | requirements(["torch", "numpy"])
    assert after - allowed == set()


# -- the rooms ---------------------------------------------------------------------------------

SHARED = {"errors", "_files", "_tree", "_numbers", "_words"}
"""What every room may use."""
LIBRARY: dict[str, set[str]] = {
    "branches": set(),
    "attack": {"branches"},
    "schedules": {"attack"},
    "adversary": {"attack", "branches", "schedules"},
    "weights": {"adversary", "attack", "branches", "schedules"},
    "optim": set(),
    "integrations": {"adversary", "attack", "branches", "schedules"},
}
"""For a training loop of one's own: torch and numpy alone."""
TRAINER: dict[str, set[str]] = {
    "trainer/data": set(),
    "trainer/models": set(),
    "trainer/distributed": set(),
    "trainer/recipe": {"trainer/data", "trainer/models"},
    "trainer/input": {"trainer/data", "trainer/distributed", "trainer/recipe"},
    "trainer/run": {"trainer/input"},
    "trainer/step": set(),
    "trainer/update": {"trainer/checkpoint", "trainer/recipe", "trainer/step"},
    "trainer/trainer": {
        "trainer/distributed",
        "trainer/input",
        "trainer/step",
        "trainer/update",
        "trainer/checkpoint",
    },
    "trainer/build": {
        "trainer/data",
        "trainer/distributed",
        "trainer/evaluation",
        "trainer/input",
        "trainer/models",
        "trainer/recipe",
        "trainer/run",
        "trainer/step",
        "trainer/trainer",
        "trainer/update",
        "trainer/losses",
    },
    "trainer/losses": {"trainer/recipe"},
    "trainer/own": {"trainer/data", "trainer/recipe"},
    "trainer/checkpoint": {
        "trainer/build",
        "trainer/distributed",
        "trainer/input",
        "trainer/recipe",
        "trainer/run",
    },
    "trainer/evaluation": {
        "trainer/checkpoint",
        "trainer/data",
        "trainer/input",
        "trainer/recipe",
        "trainer/run",
    },
    "trainer/probe": {
        "trainer/build",
        "trainer/checkpoint",
        "trainer/distributed",
        "trainer/input",
        "trainer/recipe",
        "trainer/run",
        "trainer/step",
        "trainer/trainer",
        "trainer/update",
    },
    "trainer/alike": {"trainer/build", "trainer/distributed", "trainer/recipe"},
    "trainer/outcome": {"trainer/build", "trainer/checkpoint", "trainer/input", "trainer/run"},
    "trainer/loop": {
        "trainer/alike",
        "trainer/build",
        "trainer/checkpoint",
        "trainer/distributed",
        "trainer/outcome",
        "trainer/recipe",
        "trainer/run",
        "trainer/step",
    },
    "trainer/start": {
        "trainer/data",
        "trainer/own",
        "trainer/distributed",
        "trainer/loop",
        "trainer/probe",
        "trainer/recipe",
        "trainer/run",
    },
    "trainer/__init__": {"trainer/start"},
}
"""One command, any number of devices. All of it may use the library."""
LAB: dict[str, set[str]] = {
    # A report reads run folders: it never needs the code that made the run.
    "lab/evidence": set(),
    "lab/report": {"lab/evidence"},
    "lab/planning": set(),
    "lab/bench": {"lab/planning"},
    "lab/analysis": set(),
    "lab/study": {"lab/evidence", "lab/report"},
    "lab/quickstart": {"lab/report", "lab/study"},
    "lab/__init__": set(),
}
"""Does it work, where, and why. All of it but the report may use the library and the trainer."""
APART = {"lab/report", "lab/evidence"}
ON_TOP = {"__init__", "__main__", "cli", "commands"}
"""These tie everything together and may import any room."""

MAY_IMPORT: dict[str, set[str]] = {
    **{name: SHARED for name in SHARED},
    **{name: SHARED | rooms for name, rooms in LIBRARY.items()},
    **{name: SHARED | set(LIBRARY) | rooms for name, rooms in TRAINER.items()},
    **{
        name: SHARED | rooms | (set() if name in APART else {*LIBRARY, *TRAINER})
        for name, rooms in LAB.items()
    },
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room that a module lies in: a folder at the root, or one in a wing."""
    if parts[0] in ("trainer", "lab"):
        return "/".join(parts[:2]) if len(parts) > 1 else f"{parts[0]}/__init__"
    return parts[0]


def module_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, also inside functions."""
    package = ["conadv", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def modules_of(path: Path) -> set[tuple[str, ...]]:
    """The package's own modules among them, as paths below the package."""
    found = set()
    for name in imports_of(path):
        parts = tuple(name.split(".")[1:])
        if not name.startswith("conadv."):
            continue
        while parts and not (PACKAGE.joinpath(*parts).is_dir() or _file(parts).exists()):
            parts = parts[:-1]
        if parts:
            found.add(parts)
    return found


def _file(parts: tuple[str, ...]) -> Path:
    return PACKAGE.joinpath(*parts[:-1], f"{parts[-1]}.py")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    if room not in ON_TOP:
        rooms = {room_of(parts) for parts in modules_of(path)}
        assert rooms - MAY_IMPORT[room] - {room} == set(), f"{room} may not import these"
    names = imports_of(path)
    outside = {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - {"conadv"}
    if room in {*LIBRARY, *SHARED, "__init__"}:
        allowed = {"torch", "numpy"} | ({path.stem} if room == "integrations" else set())
        assert outside - allowed == set(), f"{room} stands on torch and numpy"


def test_wings_point_one_way() -> None:
    """Lab, then trainer, then library, then what all share: never back."""
    order = [*SHARED], [*LIBRARY], [*TRAINER], [*LAB]
    height = {room: floor for floor, rooms in enumerate(order) for room in rooms}
    for room, rooms in MAY_IMPORT.items():
        assert all(height[other] <= height[room] for other in rooms), room


def test_every_room_is_in_the_table() -> None:
    """A new file or folder has to be given a place here."""
    rooms = {room_of(module_of(path)) for path in sources()}
    assert rooms == {*MAY_IMPORT, *ON_TOP}


def test_no_import_runs_in_a_circle() -> None:
    """Between files, imports inside functions and for type checkers included."""
    arrows = {
        module_of(path): {parts for parts in modules_of(path) if _file(parts).exists()}
        for path in sources()
        if path.name != "__init__.py"
    }
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], trail: list[tuple[str, ...]]) -> None:
        assert module not in trail, " -> ".join("/".join(m) for m in [*trail, module])
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                if other != module:
                    visit(other, [*trail, module])
            done.add(module)

    for module in arrows:
        visit(module, [])


def test_folders_can_be_overlooked() -> None:
    folders = {path.parent for path in sources()}
    for folder in folders:
        count = len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        limit = 7 if folder == PACKAGE else 17 if folder.name == "commands" else 13
        assert count <= limit, f"{folder.relative_to(PACKAGE)} holds {count} files"


def test_a_test_lies_where_its_source_lies() -> None:
    """Folder by folder; a file that is named like a source or a folder below lies there."""
    elsewhere = {"support", "examples", "tools", "benchmarks"}
    tests = ROOT / "tests"
    for path in sorted(tests.glob("*/**/test_*.py")):
        place = path.relative_to(tests).parent
        if place.parts[0] in elsewhere:
            continue
        folder, name = PACKAGE / place, path.stem.removeprefix("test_")
        assert folder.is_dir(), f"{path}: there is no {folder}"
        if not (folder / f"{name}.py").exists():
            assert not [*folder.rglob(f"{name}.py"), *folder.rglob(f"{name}/")], f"{path}: deeper"


def test_private_names_stay_in_their_room() -> None:
    for path in sources():
        room = room_of(module_of(path))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("conadv"):
                continue
            for alias in node.names:
                parts = (*node.module.split(".")[1:], alias.name)
                private = any(p.startswith("_") and not p.startswith("__") for p in parts)
                if private and parts[0] not in SHARED:
                    assert room_of(parts) == room, f"{path}: {'.'.join(parts)}"


def test_the_rule_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "optim" / "lars.py"
    file.parent.mkdir()
    file.write_text("from ..trainer import recipe\nfrom . import b\ndef f():\n    import numpy\n")
    assert imports_of(file) == {"conadv.trainer.recipe", "conadv.optim.b", "numpy"}


_BEGINNINGS = {
    *("After", "Always", "At", "Below", "For", "From", "In", "Inside", "Instead", "Likewise"),
    *("Nobody", "Nothing", "Of", "On", "Per", "Then", "They", "Told", "With", "Without"),
}
"""Words with which neither a verb nor a noun phrase begins."""


def test_docstrings_begin_with_a_verb_or_a_noun_phrase() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and (text := ast.get_docstring(node))
        and text.split()[0].rstrip(",.:;") in _BEGINNINGS
    ]
    assert found == []


# -- names and metadata ------------------------------------------------------------------------


def test_public_names_are_few_documented_and_there() -> None:
    assert len(conadv.__all__) <= 15
    assert sorted(conadv.__all__) == list(conadv.__all__)
    reference = (ROOT / "docs" / "reference.md").read_text()
    for name in conadv.__all__:
        assert getattr(conadv, name).__doc__, f"{name} has no docstring"
        assert re.search(rf"`{name}\b", reference), f"{name} is not in docs/reference.md"


def test_version_and_metadata_agree(wheel_file: Path) -> None:
    with zipfile.ZipFile(wheel_file) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert conadv.__version__ == metadata["Version"]
    assert f"version: {conadv.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[0] == conadv.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    plain = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert {re.split(r"[<>=]", r)[0] for r in plain} == {"torch", "numpy"}


# -- what is shipped ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that the build backend makes of this folder."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, the build backend, is not installed (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> list[str]:
    """Names of the files in it."""
    with zipfile.ZipFile(wheel_file) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_package_and_its_data(wheel: list[str]) -> None:
    names = set(wheel)
    assert "conadv/py.typed" in names
    for pattern in (
        "recipes/*.yaml",
        "studies/*.yaml",
        "lab/planning/*.yaml",
        "lab/bench/*.yaml",
        "trainer/data/assets/*",
        "lab/report/templates/*",
    ):
        for path in PACKAGE.glob(pattern):
            if path.is_file() and path.suffix not in {".pyc"}:
                assert f"conadv/{path.relative_to(PACKAGE)}" in names
    assert any(n.startswith("conadv/recipes/") and n.endswith(".yaml") for n in names)
    assert any(n.startswith("conadv/trainer/data/assets/") for n in names)
    assert {n.rpartition("/")[2] for n in names if "/licenses/" in n} == {"LICENSE", "NOTICE"}


def test_the_wheel_holds_nothing_else(wheel: list[str]) -> None:
    strays = [n for n in wheel if not n.startswith(("conadv/", "conadv-"))]
    assert strays == []
    assert not [n for n in wheel if n.endswith(".pyc") or "__pycache__" in n]

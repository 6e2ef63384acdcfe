"""Every code block of the documentation does what it says, and every link leads somewhere."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.markdown import Block, anchors, blocks, links
from support.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
LANGUAGES = {"python", "bash", "text", "yaml", "json", "toml", "bibtex"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def all_blocks(language: str) -> list[Block]:
    return [b for page in PAGES for b in blocks(page) if b.language == language]


def block_id(block: Block) -> str:
    return f"{name(block.page)}:{block.line}"


# -- Python ------------------------------------------------------------------------------------


def run_python(arguments: list[str], folder: Path, timeout: float) -> None:
    # As torchrun with one process sets it, for blocks on distributed training.
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment = {
        **os.environ,
        **ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"


WITH_PYTHON = [p for p in PAGES if any(b.language == "python" for b in blocks(p))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """One namespace per page, in order, in a new process and an empty folder, offline."""
    run_python([str(ROOT / "tests" / "support" / "run_page.py"), str(page)], tmp_path, 150)


@pytest.mark.parametrize("block", all_blocks("python"), ids=block_id)
def test_python_blocks_parse(block: Block) -> None:
    ast.parse(block.code)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    run_python([str(example), "--smoke"], tmp_path, 150)


# -- shell -------------------------------------------------------------------------------------

KNOWN_COMMANDS = {
    "bash",
    "brew",
    "cd",
    "conadv",
    "git",
    "make",
    "npm",
    "pip",
    "python",
    "python3",
    "sh",
    "source",
    "sudo",
    "tensorboard",
    "torchrun",
}


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands of a block, each as a list of words."""
    code = block.code.replace("\\\n", " ")
    for line in code.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        redirect = False
        for token in [*lexer, ";"]:
            if redirect or set(token) <= set("<>"):  # the file of a redirection is no argument
                redirect = not redirect
            elif set(token) <= set(";&|"):
                while words and re.match(r"^[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    yield words
                words = []
            else:
                words.append(token)


def conadv_arguments(words: list[str]) -> list[str] | None:
    """What the command line of conadv is given, or None if this is another command."""
    if Path(words[0]).name == "conadv":
        return words[1:]
    for i in range(len(words) - 1):
        if words[i] == "-m" and words[i + 1] == "conadv":
            return words[i + 2 :]
    return None


def check_conadv(arguments: list[str]) -> None:
    """Parse as the program would, and look up the recipes, without running anything."""
    import typer.main
    from typer.exceptions import Exit

    from conadv.cli import app
    from conadv.trainer.recipe import load_recipe, recipe_names

    command = typer.main.get_command(app)
    path = ["conadv"]
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]  # type: ignore[attr-defined]
        path.append(rest.pop(0))
    for word in rest:
        if word.startswith("runs/"):  # stands for a run that the reader has made
            Path(word).mkdir(parents=True, exist_ok=True)
    try:
        command.make_context(" ".join(path), list(rest))
    except Exit as end:  # --help, --version
        assert end.args[0:1] in ((), (0,))
        return
    if path[1:] == ["train"]:
        recipe, *others = [w for w in rest if not w.startswith("-")]
        overrides = [w for w in others if "=" in w]
        made_by_the_reader = recipe.endswith((".yaml", ".yml")) or recipe.startswith("runs/")
        assert recipe in recipe_names() or made_by_the_reader, recipe
        if recipe in recipe_names():
            load_recipe(recipe, overrides)
    if path[1:] == ["recipes", "show"]:
        assert rest[0] in recipe_names()


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {w for w in words[1:] if "=" not in w and not w.startswith("-")}
    assert asked <= targets, f"make {asked - targets}: no such target"


def check_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    for word in words:
        for extras in re.findall(r"^(?:\.|conadv)\[([\w,]+)\]$", word):
            assert set(extras.split(",")) <= known, f"{word}: the extras are {sorted(known)}"


@pytest.mark.parametrize("block", all_blocks("bash"), ids=block_id)
def test_shell_commands_exist(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n", "-c", block.code], check=True)
    for words in commands(block):
        assert Path(words[0]).name in KNOWN_COMMANDS, f"{words[0]}: is that a command?"
        arguments = conadv_arguments(words)
        if arguments is not None:
            check_conadv(arguments)
        elif words[0] == "make":
            check_make(words)
        elif "pip" in words:
            check_extras(words)
        for word in words:
            if word.endswith(".py") and not word.startswith("$"):  # a place of the reader's
                assert (ROOT / word).exists(), f"{word} is not in the repository"


def test_the_shell_check_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\nA=1 conadv train \\\n  nowhere --fast > log && make quickly\n```\n")
    [block] = blocks(page)
    first, second = commands(block)
    assert conadv_arguments(first) == ["train", "nowhere", "--fast"]
    with pytest.raises(AssertionError, match="no such target"):
        check_make(second)


# -- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_its_language(page: Path) -> None:
    """An unmarked block would be an unchecked one."""
    odd = {f"line {b.line}: {b.language!r}" for b in blocks(page) if b.language not in LANGUAGES}
    assert not odd


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=block_id)
def test_yaml_blocks_parse(block: Block) -> None:
    import yaml

    assert yaml.safe_load(block.code) is not None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"^(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(place), f"{target}: no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached = {(index.parent / t.partition("#")[0]).resolve() for t in links(index)}
    pages = {p for p in PAGES if p.is_relative_to(ROOT / "docs")} - {index}
    assert pages - reached == set()

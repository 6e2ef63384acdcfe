"""Makes the documentation's site: build/pages (what it is made of), then build/site.

    python tools/make_site.py                 # a link that leads nowhere: exit status 1
    python tools/make_site.py --folder DIR    # writes there instead

The pages are those of docs/, the reference, which is written from each room's `__all__`, so that a
new public name is on the site without a word here, and the files of the repository that they link
to. mkdocs.yml says how it looks and in which order it is read.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from posixpath import normpath, relpath

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = "repository"
"""The site's folder for files from outside of docs/."""
OUTSIDE_TRAINERS = ("lightning", "accelerate", "transformers", "timm")
ROOMS = {
    "conadv": ["conadv"],
    "conadv.optim": ["conadv.optim"],
    "conadv.weights": ["conadv.weights"],
    "conadv.integrations": [f"conadv.integrations.{name}" for name in OUTSIDE_TRAINERS],
    "conadv.trainer": ["conadv.trainer"],
    "conadv.lab.analysis": ["conadv.lab.analysis"],
}
"""A page of the reference -> the modules whose public names it has."""
FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src="|set="))(?![a-z]+:)[^)"\s#]+""")


def public_names(module: str) -> list[str]:
    """Paths of a module's `__all__`, or of the public names it defines; read, not imported."""
    place = ROOT / "src" / Path(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    body = ast.parse(file.read_text()).body
    homes = {a.name: s.module for s in body if isinstance(s, ast.ImportFrom) for a in s.names}
    names = [s.name for s in body if isinstance(s, ast.ClassDef | ast.FunctionDef)]
    for statement in body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names = sorted(ast.literal_eval(statement.value))
    # A function may have the name of a folder beside it, which a path from here would mean.
    return [
        f"{homes[name] if (place / name).is_dir() else module}.{name}"
        for name in names
        if not name.startswith("_")
    ]


def reference(title: str, modules: list[str]) -> str:
    """A page that mkdocstrings fills with the docstrings of all public names."""
    parts = [f"# {title}"]
    for module in modules:
        alone = len(modules) == 1
        parts += [] if alone else [f"## {module}"]
        options = "" if alone else "\n    options:\n      heading_level: 3"
        parts += [f"::: {path}{options}" for path in public_names(module)]
    return "\n\n".join(parts)


def on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{ELSEWHERE}/{path}"


def copy(page: str, text: str) -> tuple[str, set[str]]:
    """A page with links to places on the site, and the files that it links to.

    Args:
        page: path from the root of the repository, as those that are returned.
        text: of the page.
    """
    linked = set()

    def moved(match: re.Match[str]) -> str:
        path = normpath(f"{page}/../{match[0]}")
        if (ROOT / path).is_dir():
            # A folder stands for its page, or for its first report.
            inside = [ROOT / path / "README.md", *sorted((ROOT / path).glob("*/report.md"))]
            path = next((str(p.relative_to(ROOT)) for p in inside if p.is_file()), path)
        if (ROOT / path).is_file():
            linked.add(path)
        return relpath(on_site(path), f"{on_site(page)}/..")

    parts, end = [], 0
    for fence in FENCED.finditer(text):
        parts += [LINK.sub(moved, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(moved, text[end:])]), linked


def write_pages(folder: Path) -> None:
    """Write all that the site is made of."""
    docs = [p for p in (ROOT / "docs").rglob("*") if p.is_file()]
    waiting = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in docs)]
    seen = set(waiting)
    for path in waiting:  # which grows
        target = folder / on_site(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".md"):
            text, linked = copy(path, (ROOT / path).read_text())
            target.write_text(text)
            waiting += sorted(linked - seen)
            seen |= linked
        else:
            shutil.copyfile(ROOT / path, target)
    for title, modules in ROOMS.items():
        page = folder / "reference" / f"{title}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(reference(title, modules))


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Write the pages and make the site of them; warnings are errors."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    write_pages(folder / "pages")
    places = {"CONADV_PAGES": str(folder / "pages"), "CONADV_SITE": str(folder / "site")}
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=ROOT,
        env={**os.environ, **places, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> int:
    """Make the site of this repository."""
    parser = argparse.ArgumentParser(description="Makes the documentation's site.")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where it is written")
    done = build(parser.parse_args().folder.resolve())
    print(done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

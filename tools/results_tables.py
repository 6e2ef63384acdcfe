"""Write the tables and figures of results in the documentation from the committed result files.

    python tools/results_tables.py            # rewrite the tables
    python tools/results_tables.py --check    # say whether they are up to date; nothing is written

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`; figures within
sentences are those of `figures.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import benchmark_tables
import study_tables
from figures import write_figures
from table_parts import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
    "steps": benchmark_tables.steps,
    "weights": benchmark_tables.weights,
    "optimizers": benchmark_tables.optimizers,
    "training": benchmark_tables.training,
    "by_hand": benchmark_tables.by_hand,
    "parts": benchmark_tables.parts,
    "host": benchmark_tables.host,
    "sharing": benchmark_tables.sharing,
    "kills": benchmark_tables.kills,
    "sweep": benchmark_tables.sweep,
    "link": benchmark_tables.link,
    "planning": benchmark_tables.planning,
    "decode": benchmark_tables.decode,
    "models": benchmark_tables.models,
    "quickstart": study_tables.quickstart,
    "tuning": partial(study_tables.learning_rates, "quickstart-tuning"),
    "overhead": study_tables.overhead,
    "fashion": partial(study_tables.campaign, "fashion-cpu"),
    "goal": study_tables.goal,
    "front": study_tables.front,
    "corners": study_tables.corners,
    "cifar": partial(study_tables.campaign, "cifar10-cpu"),
    "weights_study": partial(study_tables.confirmatory, "evidence-weights"),
    "decay_study": partial(study_tables.confirmatory, "evidence-decay"),
    "decay_search": study_tables.decay_search,
    "endtoend": benchmark_tables.endtoend,
}


def render(page: Path, text: str) -> str:
    """The page with every table written anew; links of tables lead from where the page lies."""
    up = "../" * (len(page.relative_to(ROOT).parts) - 1)
    return BLOCK.sub(
        lambda m: m[1] + TABLES[m[2]]().replace("](results/", f"]({up}results/") + m[3],
        write_figures(text),
    )


def main() -> int:
    """Rewrite, or check."""
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = render(page, before)
        if after != before:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(after, encoding="utf-8")
    verb = "out of date" if "--check" in sys.argv else "rewritten"
    print(f"{verb}: {', '.join(stale)}" if stale else "all tables are up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

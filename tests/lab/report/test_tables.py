"""Tables: numbers as a person reads them, and Markdown that survives hostile names."""

from pathlib import Path

import pytest

from conadv.lab.report import find_runs, markdown_table, text
from conadv.lab.report.runs import Run
from conadv.lab.report.settings import differing
from lab.report.conftest import MakeRun


def test_markdown_table(four_runs: list[Path]) -> None:
    lines = markdown_table(find_runs(four_runs)).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert lines.splitlines() == [
        "| Method | Batch | Test accuracy | Robust accuracy | Compute | Step time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| small batch | 100 | 88.0 % | 20.0 % | 1.00× (2 k) | 1.00× (100 ms) |",
        "| vanilla | 1,000 | 82.0 % | 20.0 % | 1.00× (20 k) | 1.00× (100 ms) |",
        "| sequential | 1,000 | 81.0 % | 20.0 % | 2.67× (53.3 k) | 2.67× (267 ms) |",
        "| recycled | 1,000 | 85.0 % | 50.0 % | 2.00× (40 k) | 2.00× (200 ms) |",
    ]


def test_results_alone_seeds_and_gaps() -> None:
    common = {"method": "a|b <i>", "schedule": "vanilla", "global_batch": 8, "status": "finished"}
    table = markdown_table(
        [common | {"test_accuracy": 0.5}, common | {"test_accuracy": 0.6, "compute": None}]
    )
    row = table.splitlines()[2].replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert row == "| a\\|b \\<i\\> | 8 | 55.0 % ± 7.1 | – | – | – |"


def test_held_out_accuracy_where_no_test_image_was_looked_at() -> None:
    common = {"schedule": "vanilla", "global_batch": 8, "status": "finished", "val_accuracy": 0.75}
    table = markdown_table([common | {"method": "a"}, common | {"method": "b"}])
    lines = table.replace("\N{NARROW NO-BREAK SPACE}", " ").splitlines()
    assert lines[0] == "| Method | Batch | Held-out accuracy | Compute | Step time |"
    assert lines[2] == "| a | 8 | 75.0 % | – | – |"
    # One that was tested, and held-out images are no longer what the table is about.
    tested = markdown_table(
        [common | {"method": "a"}, common | {"method": "b", "test_accuracy": 1}]
    )
    assert "| Test accuracy | Robust accuracy |" in tested and "Held-out" not in tested


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.percent(0.8312), "83.1 %"),
        (text.percent(None), "–"),
        (text.points(0.0125), "+1.2"),
        (text.points(-0.04), "\N{MINUS SIGN}4.0"),
        (text.points(-0.0001), "0.0"),
        (text.seconds(0.0205), "20.5 ms"),
        (text.seconds(2.0), "2 s"),
        (text.amount(271_600), "272 k"),
        (text.amount(999_800), "1 M"),
        (text.amount(3.0), "3"),
        (text.figures(0.1234), "0.123"),
        (text.figures(1384.2), "1,384"),
        (text.figures(2.5e7), "2.5e+07"),
        (text.joined(["a"]), "a"),
        (text.joined(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers(written: str, expected: str) -> None:
    assert written.replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


def test_settings_that_differ(make_run: MakeRun) -> None:
    runs = find_runs([make_run("a", lr=1.0), make_run("b", lr=2.0)])
    assert differing(runs) == [(("optimizer.lr", "1"),), (("optimizer.lr", "2"),)]
    assert differing([*runs, Run(Path("c"))])[2] == ()
    assert differing(runs[:1]) == [()]

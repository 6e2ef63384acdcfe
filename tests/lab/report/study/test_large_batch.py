"""Studies: how far methods go, what they give at equal compute; found, told and exported."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from conadv.errors import RunFolderError
from conadv.lab.report import gather, write_report
from conadv.lab.report.content import Content, content
from conadv.lab.report.study.large_batch import Gain
from conadv.lab.report.study.marks import marks
from conadv.lab.report.text import MINUS
from lab.report.conftest import METHODS, VANILLA, MakeRun, MakeStudy, write_pictures


def report_of(folder: Path) -> Content:
    return content(gather([folder]))


def gain(found: Content, batch: int, method: str) -> Gain:
    (at_batch,) = [item for item in found.gains if item.batch == batch]
    (row,) = [row for row in at_batch.rows if row.cell.key.method == method]
    return row


def test_final_runs_are_found_and_trials_are_not(make_study: MakeStudy) -> None:
    folder = make_study()
    (folder / "runs" / "vanilla-b100" / "trial-000").mkdir()
    (folder / "runs" / "vanilla-b100" / "trial-000" / "result.json").write_text("{}")
    found = gather([folder])
    assert len(found.runs) == 39
    assert found.runs[0].name == "vanilla-b100/seed-0"
    assert found.runs[0].command == "conadv train vanilla-b100"
    (study,) = found.studies
    assert (study.name, study.expected) == ("a-study", 39)
    again = gather([folder.parent, folder])
    assert len(again.studies) == 1 and len(again.runs) == 39


def test_settings_that_were_given_are_not_called_tuned(make_study: MakeStudy) -> None:
    folder = make_study()
    before = report_of(folder)
    assert any("settings tuned once" in note for note in before.findings.caveats)
    assert len(before.tuned) == 13
    names = json.loads((folder / "tuned.json").read_text())["cells"]
    untuned = {"cells": {name: {"tuned_as": name} for name in names}}
    (folder / "tuned.json").write_text(json.dumps(untuned))
    after = report_of(folder)
    assert any("settings as they were given" in note for note in after.findings.caveats)
    assert after.tuned == ()


def test_the_headline_is_how_far_methods_go(make_study: MakeStudy) -> None:
    found = report_of(make_study())
    assert found.scale is not None
    reached = {reach.key.method: reach.largest for reach in found.scale.reaches}
    # The best at batch 100 has 90 %; with gains, 1,000 has 88.5, 89.5, 90, 90.1, 86.5, 88.7 %.
    assert reached == {
        "vanilla": 100,
        "vanilla-2x": 1000,
        "vanilla-4x": 1000,
        "recycled": 1000,
        "sequential": None,
        "sam": None,
    }
    said = found.findings.headline.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert said == (
        "By the means, within 0.5 points of the best small-batch accuracy (90.0 %): vanilla to "
        "batch 100; recycled to 1,000; vanilla-2x and vanilla-4x, in more steps, to 1,000."
    )


def test_gains_at_equal_epochs_and_at_equal_compute(make_study: MakeStudy) -> None:
    found = report_of(make_study())
    recycled = gain(found, 1000, "recycled")
    assert recycled.multiple == pytest.approx(2)
    assert recycled.same_steps is not None and recycled.same_compute is not None
    assert recycled.same_steps.value == pytest.approx(0.016)
    # The seeds move both alike: paired, nothing is left of their spread.
    assert recycled.same_steps.interval == pytest.approx((0.016, 0.016))
    assert not recycled.same_steps.by_chance
    # Ordinary training of twice the steps has the same compute and gained 0.01.
    assert recycled.same_compute.value == pytest.approx(0.006)
    # 0.015 were lost against batch 100.
    assert recycled.above_half is not None
    assert recycled.above_half.value == pytest.approx(0.016 - 0.015 / 2)
    sequential = gain(found, 4000, "sequential")
    assert sequential.same_compute is not None and sequential.above_half is not None
    # Of at most 8/3 of the compute the best ordinary training is that of twice: nothing between.
    assert sequential.same_compute.value == pytest.approx(0.01 - 0.02)
    assert sequential.above_half.value == pytest.approx(0.01 - 0.08 / 2)
    longer = gain(found, 4000, "vanilla-4x")
    assert longer.same_steps is None and longer.same_compute is None
    assert longer.above is not None and longer.above.value == pytest.approx(0.04)
    # Under attack the fixture gives five times the gain; twice the steps gain 0.05.
    assert recycled.robust is not None and recycled.robust_same_compute is not None
    assert recycled.robust.value == pytest.approx(0.08)
    assert recycled.robust_same_compute.value == pytest.approx(0.03)
    assert (
        "Batch 1,000, better than ordinary training under attack at equal compute by more than "
        "chance: recycled +3.0 (+3.0 to +3.0)." in found.findings.more
    )
    assert (
        "Batch 1,000, under attack: recycled is +3.0 points (+3.0 to +3.0) from the best ordinary "
        "training of at most its compute." in found.findings.sentences
    )


def test_a_longer_run_that_is_worse_is_no_baseline(make_study: MakeStudy) -> None:
    """It would make a method look good that ordinary training as it is already matches."""
    methods = dict(METHODS)
    schedule, settings, _, cost = methods["vanilla-2x"]
    methods["vanilla-2x"] = (schedule, settings, (-0.03, 0.02), cost)
    same = gain(report_of(make_study(methods=methods)), 1000, "recycled").same_compute
    assert same is not None and same.value == pytest.approx(0.016)


def test_the_same_devices_on_a_larger_batch(make_study: MakeStudy) -> None:
    methods = dict(METHODS)
    schedule, settings, gained, _ = methods["sequential"]
    methods["sequential"] = (schedule, settings, gained, 4.0)
    found = report_of(make_study(methods=methods))
    row = gain(found, 1000, "sequential")
    assert row.multiple == pytest.approx(4) and row.larger_batch is not None
    # Ordinary training at 4,000 has 82 %, in as many steps.
    assert row.larger_batch.value == pytest.approx(0.885 + methods["sequential"][2][0] - 0.82)
    assert gain(found, 1000, "recycled").larger_batch is None, "2,000 was not run"


def test_settings_that_need_a_remark_have_it_in_the_table_and_the_summary(
    make_study: MakeStudy,
) -> None:
    folder = make_study(failed=("sequential-b1000/seed-0",))
    tuned = json.loads((folder / "tuned.json").read_text())
    tuned["cells"]["recycled-b1000"]["at_the_edge"] = []
    tuned["cells"]["sam-b1000"]["trials"] = []
    largest = tuned["cells"]["recycled-b4000"]
    largest["at_the_edge"], largest["trials"][1]["values"] = [], {"optimizer.lr": 2.0}
    (folder / "tuned.json").write_text(json.dumps(tuned))
    found = report_of(folder)
    (at_batch,) = [item for item in found.gains if item.batch == 1000]
    by_name = {cell.key.method: marks(cell, at_batch.cells) for cell in at_batch.cells}
    assert by_name["vanilla"] == ("lr at the edge",)
    assert by_name["recycled"] == ()
    assert by_name["sequential"] == ("lr at the edge", "1 of 3 failed")
    assert by_name["sam"] == ("lr at the edge", "0 trials, others 2")
    assert by_name["vanilla-2x"] == ("lr at the edge", "0 trials, others 2")
    other = gain(found, 4000, "recycled").cell
    assert marks(other, [other]) == ("lr at the edge",), "nothing above it was tried"
    said = [note for note in found.findings.caveats if "0 trials, others 2" in note]
    assert len(said) == 1 and "sam, batch 1,000" in said[0]


def test_verdicts_of_a_study_are_shown(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study()
    before = report_of(folder).findings.caveats
    assert any("stated no hypothesis before its final runs" in note for note in before)
    summary = json.loads((folder / "summary.json").read_text())
    one = {"name": "primary", "claim": "better", "method": "recycled", "batch": 1000}
    one |= {"than": "vanilla", "than_batch": None, "small_batch": None, "exploratory": None}
    one |= {"seeds": 3, "seeds_expected": 4, "value": 0.016, "interval": [0.01, 0.022]}
    one |= {"bootstrap": [0.012, 0.02], "p": 0.2, "verdict": "undecided", "visible": 0.03}
    summary["hypotheses"] = [one]
    (folder / "summary.json").write_text(json.dumps(summary))
    page = write_report([folder], tmp_path / "page.html", markdown_out=tmp_path / "page.md")
    row = "| primary: recycled at 1,000, better, than vanilla | +1.6 | +1.0 to +2.2 | +1.2 to +2.0"
    row += " | 0.2 | 3 of 4 | undecided, could have seen 3.0 points |"
    assert row in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "What a-study decides" in page.read_text(encoding="utf-8")
    after = report_of(folder).findings
    assert not any("stated no hypothesis" in note for note in after.caveats)
    # The headline is the answer to the question asked beforehand, once all its runs are there.
    answer = "recycled at batch 1,000 against vanilla: +1.6 points (+1.0 to +2.2), better."
    for change, expected in (({}, False), ({"seeds": 4}, True), ({"exploratory": "more"}, False)):
        one |= {"verdict": "better", **change}
        (folder / "summary.json").write_text(json.dumps(summary))
        assert (report_of(folder).findings.headline == answer) == expected


def test_compute_that_ordinary_training_never_had_is_not_guessed(make_study: MakeStudy) -> None:
    methods = {name: METHODS[name] for name in ("vanilla", "recycled", "vanilla-2x")}
    methods["sequential"] = METHODS["sequential"]
    found = report_of(make_study(methods=methods))
    assert gain(found, 1000, "recycled").same_compute is not None
    assert gain(found, 1000, "sequential").same_compute is None


def test_ordinary_training_with_other_settings_is_told_and_counts(make_study: MakeStudy) -> None:
    """A control: what a method wins over an unluckily tuned baseline is not the method's."""
    methods = dict(METHODS)
    methods["control"] = ("vanilla", {"optimizer": {"lr": 2.0}}, (0.012, 0.03), 1.0)
    methods["recycled-budget"] = ("recycled", {"method": {"budget": "fixed"}}, (0.016, 0.01), 1.0)
    found = report_of(make_study(methods=methods))
    assert gain(found, 1000, "recycled").above.value == pytest.approx(0.016)  # type: ignore[union-attr]
    same = gain(found, 1000, "recycled-budget").same_compute
    assert same is not None and same.value == pytest.approx(0.016 - 0.012)
    assert (
        "Batch 4,000: control, which is vanilla with other settings, is +3.0 points (+3.0 to +3.0) "
        "from it: so much of another method's gain may be owed to settings." in found.findings.more
    )


def test_a_method_with_another_optimizer_stands_beside_ordinary_training_with_it(
    make_study: MakeStudy,
) -> None:
    muon = {"optimizer": {"name": "muon"}}
    methods = dict(METHODS)
    methods["muon"] = ("vanilla", muon, (0.03, 0.05), 1.0)
    methods["muon-recycled"] = ("recycled", muon, (0.034, 0.045), 2.0)
    methods["lamb-recycled"] = ("recycled", {"optimizer": {"name": "lamb"}}, (0.01, 0.01), 2.0)
    folder = make_study(methods=methods)
    found = report_of(folder)
    own, other = gain(found, 1000, "muon"), gain(found, 1000, "muon-recycled")
    assert own.above is not None and own.above.value == pytest.approx(0.03)
    assert other.above is not None and other.above.value == pytest.approx(0.004)
    assert other.robust is not None and other.robust.value == pytest.approx(5 * 0.004)
    assert other.above_half is None and other.same_compute is None, "muon of 2x was not run"
    # Of lamb there is no ordinary training: beside the study's own then, as before.
    lamb = gain(found, 1000, "lamb-recycled")
    assert lamb.above is not None and lamb.above.value == pytest.approx(0.01)
    assert lamb.same_compute is not None and lamb.same_compute.value == pytest.approx(0.0, abs=1e-9)
    assert (
        "Batch 1,000: muon, ordinary training with muon, is +3.0 points (+3.0 to +3.0) from "
        "vanilla. Methods with that optimizer are compared with it." in found.findings.more
    )
    # However good on held-out images, it does not speak for the copies.
    tuned = json.loads((folder / "tuned.json").read_text())
    tuned["cells"]["muon-recycled-b1000"]["val_accuracy"] = 1.0
    (folder / "tuned.json").write_text(json.dumps(tuned))
    assert report_of(folder).gains[0].chosen is not None
    assert report_of(folder).gains[0].chosen.cell.key.method == "recycled"  # type: ignore[union-attr]


def test_the_best_is_chosen_on_held_out_images(make_study: MakeStudy) -> None:
    folder = make_study()
    found = report_of(folder)
    assert found.gains[0].chosen is gain(found, 1000, "recycled")
    tuned = json.loads((folder / "tuned.json").read_text())
    tuned["cells"]["sequential-b1000"]["val_accuracy"] = 0.99
    (folder / "tuned.json").write_text(json.dumps(tuned))
    found = report_of(folder)
    assert found.gains[0].chosen is gain(found, 1000, "sequential")
    assert any(
        "chosen on held-out images among the adversarial methods, sequential changed that by "
        f"{MINUS}2.0 points ({MINUS}2.0 to {MINUS}2.0) at equal steps, less than half of the loss "
        "won back" in sentence
        for sentence in found.findings.sentences
    )
    # SAM and longer ordinary training have no say in what adversarial copies give.
    tuned["cells"]["sam-b1000"]["val_accuracy"] = 1.0
    (folder / "tuned.json").write_text(json.dumps(tuned))
    assert report_of(folder).gains[0].chosen.cell.key.method == "sequential"  # type: ignore[union-attr]


def test_what_is_within_chance_is_not_called_better(make_study: MakeStudy) -> None:
    methods = dict(METHODS)
    methods["recycled"] = ("recycled", {}, (0.0005, 0.01), 2.0)
    folder = make_study(methods=methods)
    for seed, moved in enumerate((-0.004, 0.001, 0.003)):
        path = folder / f"runs/recycled-b1000/seed-{seed}/result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"test_accuracy": result["test_accuracy"] + moved}))
    found = report_of(folder)
    (line,) = [
        sentence
        for sentence in found.findings.more
        if sentence.startswith("Batch 1,000, better than vanilla at equal steps")
    ]
    assert line.endswith("by more than chance: sam +0.2 (+0.2 to +0.2).")


def test_unfinished_training_is_said(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study()
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not finished (training accuracy under 95 %): vanilla, batch 4,000." in page
    section = page.partition('id="batch-4000"')[2].partition("</section>")[0]
    assert section.count('class="flag">unfinished') == 6
    assert "unfinished" not in page.partition('id="batch-1000"')[2].partition("</table>")[0]


def test_copies_of_weights_are_no_ordinary_training(make_study: MakeStudy) -> None:
    methods = dict(METHODS)
    weights = {"weights": {"schedule": "recycled"}}
    methods["weights"] = ("vanilla", weights, (0.018, 0.03), 2.0)
    row = gain(report_of(make_study(methods=methods)), 1000, "weights")
    assert not row.cell.ordinary and row.same_steps is not None and row.same_compute is not None
    assert row.same_compute.value == pytest.approx(0.018 - 0.01), "beside twice the steps"


def test_images_that_no_run_trains_on_are_said(make_study: MakeStudy) -> None:
    more = {"data": {"test_unused": True}}
    methods = {
        name: (s, {**settings, **more}, g, c) for name, (s, settings, g, c) in METHODS.items()
    }
    folder = make_study(methods=methods)
    for path in folder.rglob("result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test_images": 50_000}))
    said = "Test accuracies are over 50,000 images: the test images, and the training images that"
    assert any(note.startswith(said) for note in report_of(folder).findings.caveats)


def test_failed_runs_and_a_study_that_goes_on(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(failed=("sequential-b1000/seed-0", "sequential-b1000/seed-1"))
    summary = json.loads((folder / "summary.json").read_text())
    summary["runs"] = summary["runs"][:-1]
    (folder / "summary.json").write_text(json.dumps(summary))
    found = report_of(folder)
    row = gain(found, 1000, "sequential")
    assert len(row.cell.finished) == 1 and len(row.cell.runs) == 3
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a-study goes on: 38 of 39 final runs are there." in page
    assert "sequential-b1000/seed-0 and sequential-b1000/seed-1 are failed and left out" in page
    assert "RuntimeError: out of luck" in page


def test_the_page_has_every_part(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study()
    for cell, sharpness in (("vanilla-b4000", 30.0), ("recycled-b4000", 10.0)):
        write_pictures(folder / f"runs/{cell}/seed-0/pictures.npz")
        write_analysis(folder / f"runs/{cell}/seed-0/analysis.json", sharpness)
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'id="([\w-]+)"', page))
    assert {"scale", "batch-1000", "batch-4000", "results", "analysis", "tuning"} <= ids
    assert {f"chart-{slug}" for slug in ("batch", "compute", "attack", "fit")} <= ids
    assert {"chart-landscape", "chart-robustness"} <= ids
    # One message, three charts, the contents: then everything else.
    order = [page.index(f"chart-{slug}") for slug in ("batch", "compute", "attack")]
    assert order == sorted(order) and page.index("<h1>") < order[0]
    assert order[-1] < page.index('class="contents"') < page.index('id="found"')
    assert page.index("</summary>") > page.index('id="found"')
    assert len(page.encode()) < 2_000_000
    assert "conadv train recycled-b4000" in page
    assert f"conadv study {folder}/study.yaml" in page
    analysis = page.partition('id="analysis"')[2].partition("</table>")[0]
    assert "0.234" in analysis and "0.55" not in analysis
    assert "recycled, batch 4,000: copies of weights should not be used at step 4." in page
    assert ">10</span>" in analysis and ">30</span>" in analysis and ">+3.0<" in analysis
    tuning = page.partition('id="tuning"')[2].partition("</table>")[0]
    assert "lr 4, epsilon 1/255" in tuning and "it diverged" in tuning
    assert 'class="flag">lr<' in tuning


def test_markdown_and_table(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study(failed=("sequential-b1000/seed-0",))
    write_report(
        [folder],
        tmp_path / "page.html",
        markdown_out=tmp_path / "page.md",
        table_out=tmp_path / "new" / "runs.csv",
    )
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    text = text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert text.startswith("# By the means, within 0.5 points of the best small-batch accuracy")
    row = "| recycled | – | 90.1 % ± 0.1 | 83.0 % ± 0.1 | 1,000 |"
    assert row in text
    assert (
        "| recycled | 90.1 % ± 0.1 | +1.6 (+1.6 to +1.6) | 2.00× | – | +0.6 (+0.6 to +0.6) |"
        in text
    )
    widths = {
        len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")
    }
    assert widths == {6, 7, 11}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "runs.csv").read_text())))
    assert len(rows) == 39
    by_name = {row["run"]: row for row in rows}
    assert by_name["sequential-b1000/seed-0"]["status"] == "failed"
    assert by_name["sequential-b1000/seed-0"]["test_accuracy"] == ""
    best = by_name["recycled-b1000/seed-2"]
    assert float(best["test_accuracy"]) == pytest.approx(0.902)
    assert best["unfinished"] == "false" and best["method.schedule"] == "recycled"
    assert best["command"] == "conadv train recycled-b1000"


def test_folders_that_are_no_study(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = make_study()
    (folder / "summary.json").write_text('{"runs": []}')
    with pytest.raises(RunFolderError, match=r"no final run has ended yet.*--status"):
        gather([folder])
    (folder / "summary.json").write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        gather([folder])
    (folder / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="nor holds any"):
        gather([folder])


def test_a_summary_of_a_lost_folder_and_hostile_words(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = make_study()
    evil = "</script><script>alert(1)</script>"
    summary = json.loads((folder / "summary.json").read_text())
    summary["runs"][4] |= {"message": evil, "cell": evil, "command": evil, "status": "failed"}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "tuned.json").write_text(
        json.dumps({"cells": {evil: {"chosen": {evil: evil}, "trials": [None]}, "b": None}})
    )
    page = write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "alert(1)" in page


def test_two_batches_with_seeds_are_judged_like_three(make_study: MakeStudy) -> None:
    folder = make_study()
    summary = json.loads((folder / "summary.json").read_text())
    summary["runs"] = [row for row in summary["runs"] if row["batch"] != 4000]
    (folder / "summary.json").write_text(json.dumps(summary))
    found = content(gather([folder])).findings
    (lost,) = [s for s in found.sentences if s.startswith("Batch 1,000: vanilla lost 1.5")]
    assert "chance" not in lost
    lost_so_much = "Batch 1,000 lost 1.5 points (+1.5 to +1.5) against batch 100; "
    assert found.headline == (
        f"{lost_so_much}recycled changed it by +1.6 points (+1.6 to +1.6) at equal steps, at least "
        "half of the loss won back."
    )
    assert any("better than vanilla at equal steps by more than" in s for s in found.more)
    assert any("an interval of 95 %" in note for note in found.caveats)
    tuned = json.loads((folder / "tuned.json").read_text())
    tuned["cells"]["sequential-b1000"]["val_accuracy"] = 0.99
    (folder / "tuned.json").write_text(json.dumps(tuned))
    found = content(gather([folder])).findings
    assert found.headline.startswith(f"{lost_so_much}sequential changed it by {MINUS}")
    assert found.headline.endswith("less than half of the loss won back.")


def test_a_seedless_pair_of_batches_stays_a_comparison(make_run: MakeRun) -> None:
    """Two runs at two batches, as in the quickstart: no table of how far methods go."""
    make_run("a", batch=100)
    folder = make_run("b", batch=1000, schedule="recycled")
    found = content(gather([folder.parent]))
    assert found.scale is None and found.gains == ()
    assert [chart.slug for chart in found.charts] == ["fit"]


def test_compute_of_the_fixture_is_what_it_says() -> None:
    """The expected figures above are worked out from these."""
    assert VANILLA == {100: 0.9, 1000: 0.885, 4000: 0.82}
    assert METHODS["vanilla-2x"][3] == 2 == METHODS["recycled"][3]


def write_analysis(path: Path, sharpness: float) -> None:
    """An ``analysis.json`` of a few lines."""
    results = {
        "gap": {"accuracy_gap": 0.03},
        "sharpness": {
            "hessian": {"eigenvalues": [sharpness, 1.0], "trace": 100.0},
            "sam": {"points": [{"radius": 0.05, "sharpness": 0.2}]},
        },
        "robustness": {
            "curves": [
                {
                    "branch": "clean",
                    "attack": "pgd",
                    "epsilons": [0, 1 / 255],
                    "accuracies": [0.9, 0.5],
                },
                {"branch": "clean", "attack": "fgsm", "epsilons": [0], "accuracies": [0.9]},
            ]
        },
        "landscape": {"lines": [{"positions": [-1, 0, 1], "losses": [2.0, 0.1, 2.2]}]},
        "corruptions": {"mean": 0.6},
        "gradients": {
            "steps": [{"own": 0.55}, {"own": 0.234}, {"own": None}],
            "verdict": "copies of weights should not be used at step 4",
        },
    }
    entries = {name: {"result": result, "step": 1} for name, result in results.items()}
    path.write_text(json.dumps({"format": "conadv-analysis", "analyses": entries}))

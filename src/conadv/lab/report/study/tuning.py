"""What a study tuned, and what it chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.report.runs import finite
from conadv.lab.report.study.runs import StudyFacts
from conadv.lab.report.text import percent


@dataclass(frozen=True)
class Tuned:
    """One setting of a study.

    Attributes:
        cell: Method and batch, as the study calls it.
        chosen: The values that were taken, in words.
        accuracy: Of that trial, on held-out images, or the mean of its settings over seeds.
        edge: Values at the edge of their range: the range should be widened.
        trials: Every trial in words: values and accuracy.
    """

    cell: str
    chosen: str
    accuracy: str
    edge: str
    trials: tuple[str, ...]


def tuning(studies: Sequence[StudyFacts]) -> list[Tuned]:
    """Every tuned setting, in the order of the studies; none of a study without trials."""
    return [
        _tuned(name, entry)
        for study in studies
        for name, entry in study.tuned.items()
        if isinstance(entry, Mapping) and entry.get("tuned_as") != name
    ]


def value(name: str, number: Any) -> str:
    """A tuned value: radii of attacks in 255ths, as recipes have them."""
    known = finite(number)
    if known is None:
        return str(number)
    short = name.rpartition(".")[2]
    return f"{short} {255 * known:.3g}/255" if short == "epsilon" else f"{short} {known:.3g}"


def _tuned(name: str, entry: Mapping[str, Any]) -> Tuned:
    if "tuned_as" in entry:
        return Tuned(name, f"as {entry['tuned_as']}", percent(None), "", ())
    edge = entry.get("at_the_edge") or ()
    trials = entry.get("trials") or ()
    confirmed = {
        one.get("trial"): one.get("accuracies")
        for one in entry.get("confirmed") or ()
        if isinstance(one, Mapping)
    }
    return Tuned(
        name,
        _words(entry.get("chosen")) or "not chosen yet",
        percent(finite(entry.get("val_accuracy"))),
        ", ".join(str(item).rpartition(".")[2] for item in edge),
        tuple(_trial(trial, confirmed) for trial in trials if isinstance(trial, Mapping)),
    )


def _trial(trial: Mapping[str, Any], confirmed: Mapping[Any, Any]) -> str:
    accuracy = percent(finite(trial.get("accuracy")))
    said = f" ({trial['message']})" if trial.get("message") else ""
    again = [percent(finite(one)) for one in (confirmed.get(trial.get("number")) or ())[1:]]
    said += f", on further seeds {', '.join(again)}" if again else ""
    return f"{_words(trial.get('values'))}: {accuracy}{said}"


def _words(values: Any) -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(value(str(name), number) for name, number in values.items())

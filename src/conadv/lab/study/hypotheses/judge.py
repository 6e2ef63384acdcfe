"""The verdict on each hypothesis of a study: words that follow intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conadv.lab.evidence import ALPHA, Paired, holm, smallest_effect
from conadv.lab.study.hypotheses.registration import Registration
from conadv.lab.study.hypotheses.schema import PRIMARY, Hypothesis
from conadv.lab.study.schema import Study

UNDECIDED = "undecided"
INTERIM = "not all of its runs have ended"
_UNREGISTERED = "nothing was stated before the final runs"
_LATER_SEEDS = "with seeds added after the first final run"

Accuracies = Mapping[tuple[str, int], Mapping[int, float]]
"""Accuracies by (method, batch), then by seed."""


@dataclass(frozen=True)
class Judgement:
    """What the final runs say about a hypothesis.

    Attributes:
        name: ``primary``, or its name in the family.
        hypothesis: What was claimed.
        found: Its contrast, one value a seed: `Hypothesis.contrast`.
        loss: For won_back, what the other method loses at the large batch.
        seeds: How many there should be.
        waiting: Runs of it that have not ended: a verdict before that would be a look too early.
        exploratory: Why it decides nothing; None where it was stated beforehand.
        p: Of the claim's bound, corrected in the whole family (Holm), in which a claim that has
            no seeds yet counts as 1; None for fewer than two seeds.
    """

    name: str
    hypothesis: Hypothesis
    found: Paired
    loss: Paired | None
    seeds: int
    waiting: int
    exploratory: str | None
    p: float | None

    @property
    def verdict(self) -> str:
        """Verdict in words; ``undecided`` unless ``p`` is under 5 % and every run has ended."""
        if self.waiting:
            return INTERIM
        claim, margin = self.hypothesis.claim, self.hypothesis.margin or 0.0
        if self.p is None or self.p >= ALPHA:
            return UNDECIDED
        if claim == "won_back" and self.loss is not None:
            if self.loss.by_chance or self.loss.value <= 0:
                return "no loss shown, so nothing to win back"
        above = self.found.value > (-margin if claim == "not_worse" else 0.0)
        points = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
        share = f"{100 * self.hypothesis.share:g} % of the loss"
        words = {
            "better": ("better", "worse"),
            "interaction": ("gains more at the large batch", "gains less at the large batch"),
            "won_back": (f"won back at least {share}", f"won back less than {share}"),
            "not_worse": (f"no more than {points} lost", f"more than {points} lost"),
            "equivalent": (f"equal within {points}",) * 2,
        }[claim]
        return words[0] if above else words[1]

    def as_dict(self) -> dict[str, Any]:
        """The entry of ``summary.json``; accuracies are fractions."""
        interval, bootstrap = self.found.interval, self.found.bootstrap
        return {
            "name": self.name,
            **self.hypothesis.model_dump(mode="json"),
            "exploratory": self.exploratory,
            "seeds": len(self.found.differences),
            "seeds_expected": self.seeds,
            "waiting": self.waiting,
            "value": self.found.value,
            "interval": None if interval is None else [*interval],
            "bootstrap": None if bootstrap is None else [*bootstrap],
            "p": self.p,
            "verdict": self.verdict,
            "visible": self.found.visible,
        }


def judge(
    study: Study, runs: Sequence[Mapping[str, Any]], registration: Registration | None
) -> list[Judgement]:
    """Judge every hypothesis of which any seed is complete.

    What was stated beforehand is judged on the seeds that were named then. With more seeds it is
    judged once more, as exploratory.

    Args:
        study: As it is now.
        runs: Rows of ``summary.json``, one for every run that has ended. Those that have not
            finished are left out, and so is the seed of every contrast that they are part of.
        registration: From before the first final run.
    """
    if study.hypotheses is None:
        return []
    seeds = study.final.seeds
    if registration is None:
        return _judged(study, runs, seeds, dict.fromkeys(study.hypotheses.named, _UNREGISTERED))
    why = {name: registration.objection(study, name) for name in study.hypotheses.named}
    first = tuple(seed for seed in seeds if seed in registration.seeds)
    found = _judged(study, runs, first, why)
    if len(first) < len(seeds):
        later = {name: reason or _LATER_SEEDS for name, reason in why.items()}
        found += _judged(study, runs, seeds, later)
    return found


def _judged(
    study: Study,
    runs: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    why: Mapping[str, str | None],
) -> list[Judgement]:
    assert study.hypotheses is not None
    found: dict[str, tuple[Hypothesis, Paired, Paired | None, float | None]] = {}
    for name, hypothesis in study.hypotheses.named.items():
        measured = accuracies(runs, hypothesis.measure)
        contrast = paired(measured, hypothesis.contrast(), seeds)
        if contrast is not None:
            loss = paired(measured, _loss(hypothesis), seeds) if hypothesis.small_batch else None
            found[name] = hypothesis, contrast, loss, _p(hypothesis, contrast)
    known = {name: p for name, (*_, p) in found.items() if p is not None}
    family = [name for name in study.hypotheses.named if name != PRIMARY]
    corrected = dict(zip(family, holm([known.get(name, 1.0) for name in family]), strict=True))
    return [
        Judgement(
            name,
            hypothesis,
            contrast,
            loss,
            len({*seeds} & {*study.seeds_of_all(method for method, _ in hypothesis.contrast())}),
            _waiting(study, runs, seeds, hypothesis),
            why[name],
            p if p is None else corrected.get(name, p),
        )
        for name, (hypothesis, contrast, loss, p) in found.items()
    ]


def _waiting(
    study: Study, runs: Sequence[Mapping[str, Any]], seeds: Sequence[int], hypothesis: Hypothesis
) -> int:
    ended = {(run["method"], int(run["batch"]), int(run["seed"])) for run in runs}
    planned = {
        (method, batch, seed)
        for method, batch in hypothesis.contrast()
        for seed in {*seeds} & {*study.seeds_of(method)}
    }
    return len(planned - ended)


def _loss(hypothesis: Hypothesis) -> dict[tuple[str, int], float]:
    assert hypothesis.small_batch is not None
    than = hypothesis.than
    return {(than, hypothesis.small_batch): 1.0, (than, hypothesis.batch): -1.0}


def _p(hypothesis: Hypothesis, found: Paired) -> float | None:
    if hypothesis.claim == "equivalent":
        return found.p_equivalent(hypothesis.margin or 0.0)
    return found.p_value(-(hypothesis.margin or 0.0))


def accuracies(runs: Sequence[Mapping[str, Any]], measure: str) -> Accuracies:
    """A measure of the finished runs."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for run in runs:
        if run["status"] == "finished" and run.get(measure) is not None:
            cell = str(run["method"]), int(run["batch"])
            found.setdefault(cell, {})[int(run["seed"])] = float(run[measure])
    return found


def paired(
    measured: Accuracies, contrast: Mapping[tuple[str, int], float], seeds: Sequence[int]
) -> Paired | None:
    """A contrast on every seed that all of its cells have; None where there is none."""
    whole = [s for s in seeds if all(s in measured.get(cell, {}) for cell in contrast)]
    if not whole:
        return None
    return Paired(
        tuple(sum(f * measured[cell][seed] for cell, f in contrast.items()) for seed in whole)
    )


def visible_effects(study: Study) -> dict[str, float]:
    """The smallest effect that the planned seeds would show, by hypothesis; empty without a spread.

    With a pilot's spread s of a difference of two accuracies, a contrast of factors c spreads by
    s * sqrt(sum(c^2) / 2), where all accuracies vary alike and are alike related. Secondary ones
    are taken at the level of Holm's first step.
    """
    stated = study.hypotheses
    if stated is None or stated.spread is None:
        return {}
    found = {}
    for name, hypothesis in stated.named.items():
        size = (sum(f**2 for f in hypothesis.contrast().values()) / 2) ** 0.5
        alpha = ALPHA if name == PRIMARY else ALPHA / max(1, len(stated.secondary))
        seeds = study.seeds_of_all(method for method, _ in hypothesis.contrast())
        effect = smallest_effect(len(seeds), stated.spread * size, alpha)
        if effect is not None:
            found[name] = effect
    return found

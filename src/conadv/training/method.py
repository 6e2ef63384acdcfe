"""From a recipe to its network with branches, its attack and its schedule."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

import conadv
from conadv.errors import RecipeError
from conadv.schedules import Schedule
from conadv.training.models import build_model
from conadv.training.recipe import Recipe
from conadv.training.recipe.checks import as_schedule
from conadv.training.recipe.sections import BRANCHES, VIEW_BRANCH
from conadv.training.splits import Facts


def branches_of(recipe: Recipe) -> tuple[str, ...]:
    """Normalisation branches of a recipe's model: vanilla training has no adversarial one."""
    branches = BRANCHES[:1] if recipe.method.schedule == "vanilla" else BRANCHES
    return branches if recipe.method.view == "none" else (*branches, VIEW_BRANCH)


def make_model(recipe: Recipe, facts: Facts) -> nn.Module:
    """The network, its normalisation split into :func:`branches_of`.

    Raises:
        RecipeError: The recipe does not fit the data, or evaluates through a branch that its
            model does not have.
    """
    branches = branches_of(recipe)
    for field, branch in (
        ("evaluation.branch", recipe.evaluation.branch),
        ("attack.branch", recipe.attack.branch),
    ):
        if branch not in (None, *branches):
            raise RecipeError(
                f"{field}={branch} with method.schedule=vanilla: its model has the clean branch "
                f"only. Set {field}=clean, or another method.schedule."
            )
    model = build_model(recipe.model, facts.channels, len(facts.classes))
    group = recipe.norm_group if recipe.norm_group != recipe.micro_batch else None
    if len(branches) == 1 and group is None:
        return model  # nothing to split: an ordinary network at an ordinary network's speed
    return conadv.split_norms(
        model,
        branches,
        statistics=recipe.norm.statistics,
        group_size=group,
        layer_norm=recipe.norm.layer_norm,
    )


def make_adversary(recipe: Recipe, model: nn.Module, facts: Facts, rounds: int) -> conadv.Adversary:
    """The adversary on the model, or on what it is wrapped in.

    Args:
        recipe: Schedule and attack.
        model: Bare, compiled or in DistributedDataParallel.
        facts: Mean and std of the data set.
        rounds: Micro-batches of a step on this rank.
    """
    schedule = make_schedule(recipe, rounds)
    # Where there is no adversarial branch, pictures of the attack are taken through the clean one.
    branch = BRANCHES[-1] if BRANCHES[-1] in branches_of(recipe) else BRANCHES[0]
    return conadv.Adversary(
        model,
        make_attack(recipe, facts),
        schedule,
        seed=recipe.seed,
        adversarial_branch=branch,
        track_agreement=recipe.method.track_agreement,
    )


def make_attack(recipe: Recipe, facts: Facts) -> conadv.Attack:
    """The attack of training, on images standardised with the data set's mean and std."""
    return conadv.Attack(mean=facts.mean, std=facts.std, **dict(recipe.attack))


def make_schedule(recipe: Recipe, rounds: int) -> Schedule:
    """The schedule object.

    Lookahead's staleness is counted in rounds, one per micro-batch: ``tau`` steps are
    ``tau * rounds`` rounds, so the copies of a step's micro-batches are all made at the
    weights of the step that lies ``tau`` steps before it.

    Args:
        recipe: Names the schedule.
        rounds: Micro-batches of a step on this rank.
    """
    method = recipe.method
    share = as_schedule(method.share)
    weight = None if method.weight is None else as_schedule(method.weight)
    makers: dict[str, Callable[[], Schedule]] = {
        "vanilla": conadv.Vanilla,
        "sequential": lambda: conadv.Sequential(share, weight),
        "noise": lambda: conadv.Noise(share, weight),
        "lookahead": lambda: conadv.Lookahead(method.tau * rounds, share, weight),
        "recycled": lambda: conadv.Recycled(share, weight, method.budget, method.refine),
    }
    return makers[method.schedule]()


def make_test_attack(recipe: Recipe, facts: Facts) -> conadv.Attack:
    """What ``robust_accuracy`` is measured with: FGSM, or PGD from a random start."""
    steps = recipe.evaluation.robust_steps
    attack = conadv.Attack(
        recipe.robust_epsilon, mean=facts.mean, std=facts.std, norm=recipe.attack.norm
    )
    return replace(attack, steps=steps, random_start=1.0) if steps else attack

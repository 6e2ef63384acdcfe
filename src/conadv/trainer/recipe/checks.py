"""What the fields of a recipe must be to one another. All problems are found at once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conadv._numbers import near_divisors
from conadv._words import import_callable, import_named, is_path
from conadv.attack import Attack
from conadv.schedules import Schedule
from conadv.trainer.recipe.method import owners, settings
from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.update_checks import refused, update_problems
from conadv.trainer.recipe.updates import Refusal
from conadv.trainer.recipe.weights_checks import weights_problems

SMALLEST_DEFAULT_MICRO_BATCH = 16


def problems(recipe: Recipe) -> list[str]:
    """Everything that is impossible about a recipe whose fields are each valid."""
    checks: tuple[Callable[[Recipe], Iterator[str]], ...] = (
        _model,
        _loss,
        _batch,
        _attack_units,
        _method,
        _branches,
        _schedule,
        update_problems,
        weights_problems,
        _length,
        _parallel,
        _images,
    )
    return [problem for check in checks for problem in check(recipe)]


def _model(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if is_path(model.name):
        yield from _message(import_callable, f"model.name={model.name!r}: ", model.name)
    if model.pretrained and not model.name.startswith(("timm/", "torchvision/")):
        yield (
            f"model.pretrained=true with model.name={model.name}: there are no weights to "
            "download for this network. Set it to false, or take a timm/ or torchvision/ one."
        )
    if model.pretrained and model.weights is not None:
        yield (
            f"model.pretrained=true with model.weights={model.weights}: a network begins with one "
            "or the other. Set model.pretrained=false, or model.weights=null."
        )


def _loss(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    if not is_path(train.loss):
        return
    yield from _message(import_callable, f"train.loss={train.loss!r}: ", train.loss)
    for name, given, none in (
        ("label_smoothing", train.label_smoothing, "0"),
        ("class_weights", train.class_weights, "null"),
    ):
        if given:
            yield (
                f"train.{name} with train.loss={train.loss}: a loss of one's own does that itself. "
                f"Set train.{name}={none}; what the loss takes goes into train.loss_options."
            )


def _batch(recipe: Recipe) -> Iterator[str]:
    total, micro = recipe.batch.global_batch, recipe.batch.micro_batch
    if micro is None:
        micro = recipe.micro_batch
        if micro < min(total, SMALLEST_DEFAULT_MICRO_BATCH):
            yield (
                f"batch.global_batch={total}: its largest divisor up to 128 is {micro}, too few "
                f"images for a forward pass. Take a multiple of 128, such as "
                f"{max(1, round(total / 128)) * 128}, or give batch.micro_batch."
            )
            return
    elif micro > total:
        yield (
            f"batch.micro_batch={micro} is more than batch.global_batch={total}: it is a part of "
            f"it. Give a divisor of {total}, or null."
        )
        return
    elif total % micro:
        yield (
            f"batch.global_batch={total} is not a multiple of batch.micro_batch={micro}: every "
            f"forward pass takes as many images. Near {micro}, the divisors are "
            f"{_words(near_divisors(total, micro))}."
        )
    group = recipe.batch.norm_group
    if group is not None and micro % group:
        yield (
            f"batch.norm_group={group} does not divide micro_batch={micro}: normalisation groups "
            f"are parts of a forward pass. Near {group}, the divisors are "
            f"{_words(near_divisors(micro, group))}."
        )


def _words(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _attack_units(recipe: Recipe) -> Iterator[str]:
    attack = recipe.attack
    radius = list(_message(lambda: Attack(attack.epsilon, norm=attack.norm), "attack."))
    yield from radius
    if not radius:
        least = partial(Attack, attack.epsilon, norm=attack.norm, epsilon_min=attack.epsilon_min)
        yield from _message(least, "attack.")
    yield from _message(
        lambda: Attack(0.0, norm=attack.norm, step_size=attack.step_size), "attack."
    )
    tested = recipe.evaluation.robust_epsilon
    if tested is not None:
        yield from _message(lambda: Attack(tested, norm=attack.norm), "evaluation.robust_")


def _method(recipe: Recipe) -> Iterator[str]:
    """Settings that the schedule does not have, or with which it is another one."""
    method = recipe.method
    name = method.schedule
    for key, setting in settings().items():
        value = getattr(method, key)
        if key not in method.kind.settings:
            if value != setting.default:
                only = " and ".join(owners(key))
                yield (
                    f"method.{key}={value} with method.schedule={name}: only {only} has this "
                    f"setting. Set method.{key}={setting.default}, or method.schedule="
                    f"{' or '.join(owners(key))}."
                )
        elif value in setting.same_as:
            yield (
                f"method.{key}={value} with method.schedule={name}: that would be method.schedule="
                f"{setting.same_as[value]}. Set that, or another method.{key}."
            )
    for key, value in method.options.items():
        known = method.kind.settings.get(key)
        problem = None if known is None else known.problem(value)
        if key in settings():
            yield f"method.options has {key}, which is a field: set method.{key} instead."
        elif problem:
            yield f"method.options: {key}={value!r}: {problem}."


def _branches(recipe: Recipe) -> Iterator[str]:
    """Training without copies has nothing to send through a second branch: its model lacks one."""
    method = recipe.method
    if method.kind.makes_copies:
        return
    fields = (
        ("evaluation.branch", recipe.evaluation.branch, "clean"),
        ("attack.branch", recipe.attack.branch, "null"),
    )
    for name, branch, instead in fields:
        if branch == "adversarial":
            yield (
                f"{name}=adversarial with method.schedule={method.schedule}: its network has the "
                f"clean branch alone. Set {name}={instead}, or another method.schedule."
            )


def _schedule(recipe: Recipe) -> Iterator[str]:
    """The schedule's own refusals, asked for one setting at a time so that none hides another."""
    method, attack = recipe.method, recipe.attack
    found = list(_message(method.make, "method."))
    yield from found
    if not found:
        yield from _rounds(recipe, method.make())
    usual = list(_message(method.kind.for_steps, "", 1))
    for name in ("target", "branch", "mode", "random_start", "steps"):
        if usual:
            break  # it cannot be made without its options
        one: dict[str, Any] = {name: getattr(attack, name)}
        resolve = method.kind.for_steps(1).resolve
        yield from _message(resolve, "attack.", Attack(0.0, **one), "clean", "adversarial")


def _rounds(recipe: Recipe, schedule: Schedule) -> Iterator[str]:
    """What the schedule makes of the micro-batches of a step."""
    micro, rounds = recipe.micro_batch, recipe.micro_steps
    refused = list(_message(schedule.fresh_images, "method.", micro))
    yield from refused
    if not refused and schedule.fresh_images(micro) < 1:
        yield (
            f"method.share={recipe.method.share} leaves no fresh image in a micro-batch of "
            f"{micro}: lower it, or raise batch.micro_batch."
        )
    if recipe.method.make(rounds).reads_ahead != rounds * schedule.reads_ahead:
        yield (
            f"method.schedule={recipe.method.schedule} reads {schedule.reads_ahead} rounds ahead, "
            f"and a step has {rounds}: the trainer reads whole steps ahead. Say so in the class, "
            "with a setting that is in_steps, or set batch.micro_batch to batch.global_batch."
        )


def _length(recipe: Recipe) -> Iterator[str]:
    epochs, steps = recipe.train.epochs, recipe.train.steps
    if (epochs is None) == (steps is None):
        yield (
            f"train.epochs={_null(epochs)} and train.steps={_null(steps)}: give exactly one of the "
            "two, and null for the other."
        )
    warmup = recipe.lr_schedule.warmup_epochs
    if epochs is not None and warmup > epochs:
        yield (
            f"lr_schedule.warmup_epochs={warmup:g} is longer than train.epochs={epochs:g}: the "
            "learning rate would never reach its peak. Give at most as many."
        )


def _parallel(recipe: Recipe) -> Iterator[str]:
    """What a model cannot have whose weights lie in parts on the processes."""
    if recipe.hardware.parallel == "fsdp":
        yield from refused(recipe, "hardware.parallel=fsdp", _REFUSES, "hardware.parallel=ddp")


_REFUSES = (
    Refusal("train.ema_decay", bool, "the average of the weights is whole", "train.ema_decay=null"),
    Refusal("hardware.compile", bool, "it was never tried together", "hardware.compile=false"),
    Refusal(
        "method.track_agreement",
        bool,
        "a process without copies would not take the passes that the others take",
        "method.track_agreement=false",
    ),
    Refusal(
        "data.order_tail",
        lambda tail: tail == "keep",
        "in a short step processes would make different numbers of passes, and wait for ever",
        "data.order_tail=wrap or drop",
    ),
)


def _images(recipe: Recipe) -> Iterator[str]:
    """Augmentation that this kind of data set does not have."""
    data, method, train = recipe.data, recipe.method, recipe.train
    if data.test_unused and (data.dataset == "files" or data.train_images is None):
        yield (
            f"data.test_unused=true with data.dataset={data.dataset}, data.train_images="
            f"{_null(data.train_images)}: it is for data sets in memory of which part is used. "
            "Give data.train_images, and another data.dataset than files, or set it to false."
        )
    if is_path(data.dataset):
        yield from _message(lambda: import_named(data.dataset), f"data.dataset={data.dataset!r}: ")
    elif data.options:
        yield (
            f"data.options={data.options} with data.dataset={data.dataset}: only a data set of "
            "one's own has them. Leave them out."
        )
    if data.augment is not None:
        yield from _message(import_callable, f"data.augment={data.augment!r}: ", data.augment)
    if data.dataset == "files":
        for name, given in (("crop_padding", data.crop_padding), ("cutout", data.cutout)):
            if given:
                yield (
                    f"data.{name}={given} with data.dataset=files: its images are cropped out of "
                    f"larger ones (data.files.area). Set data.{name}=0; data.files.erasing blanks "
                    "out rectangles."
                )
    elif method.view not in ("none", "plain"):
        yield (
            f"method.view={method.view} with data.dataset={data.dataset}: policies are for "
            "data.dataset=files. Set method.view=plain or none."
        )
    if method.view != "none" and (train.mixup or train.cutmix):
        yield (
            f"method.view={method.view} with train.mixup={train.mixup:g}, train.cutmix="
            f"{train.cutmix:g}: a second view has the labels of its own image. Set both to 0, or "
            "method.view=none."
        )


def _null(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _message(attempt: Callable[..., object], prefix: str, *given: Any) -> Iterator[str]:
    """What the core says against something, its setting named as in a recipe."""
    try:
        attempt(*given)
    except ValueError as error:
        yield prefix + str(error)
    except TypeError as error:
        yield f"{prefix}options: {error}."

"""conadv in Hugging Face's Trainer: copies of images, or of a text's embeddings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conadv.adversary import Adversary
from conadv.attack import Attack, Criterion
from conadv.integrations._extra import extra
from conadv.integrations._ranks import load_rank, save_rank
from conadv.schedules import Schedule, resolve_schedule

with extra("transformers"):
    from transformers import Trainer, TrainerCallback
    from transformers.loss.loss_utils import ForCausalLMLoss
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint


def cross_entropy_of_logits(outputs: Any, labels: Any) -> Tensor:
    """Mean cross-entropy of ``outputs["logits"]`` and ``labels["labels"]``: of an attack.

    Raises:
        ValueError: there is not one row of logits per label, as in models of words.
    """
    logits, targets = outputs["logits"], labels["labels"]
    if logits.ndim != 2:
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} are not one row per sample: this schedule "
            "attacks, so give criterion=, a function of (outputs, labels) that returns a mean loss."
        )
    return nn.functional.cross_entropy(logits, targets)


class ConAdvMixin:
    """Put before Trainer, or a class derived from it: trains on adversarial copies too.

    Vision models get copies of ``pixel_values``. Of other models the copies are of what
    ``model.get_input_embeddings()`` gives, and of any model those of the layer that ``Attack(at=)``
    names; masked tokens are not perturbed. The model computes its own loss, over the batch and
    copies alike, so a schedule's weight has to be None. Under gradient accumulation every label of
    a step counts the same where the Trainer counts labels, as it does for models whose forward
    takes more keyword arguments; that they then make use of the count is not asked of them.

    Checkpoints hold a file per rank of what is pending; `train(resume_from_checkpoint=...)`
    reads it. Split the model before the Trainer is made, where it has batch norm.

    Args:
        *arguments: of the Trainer.
        attack: what one adversarial step is.
        schedule: a name or a schedule object.
        criterion: of schedules that attack (sequential), ``criterion(outputs, labels)`` -> mean
            loss, labels being the batch's dict without what is perturbed.
        adversary_options: more for `Adversary`.
        **options: of the Trainer.

    Raises:
        ValueError: lookahead, whose next batch the Trainer does not show in step; a checkpoint
            without what was pending; several GPUs in one process.

    Example:
        >>> class MyTrainer(ConAdvMixin, Trainer): ...
        >>> attack = Attack(4 / 255, mean=processor.image_mean, std=processor.image_std)
        >>> MyTrainer(split_norms(model), arguments, train_dataset=data, attack=attack).train()
    """

    args: Any
    accelerator: Any
    label_names: list[str]
    model_accepts_loss_kwargs: bool
    compute_loss_func: Any

    def __init__(
        self,
        *arguments: Any,
        attack: Attack,
        schedule: str | Schedule = "recycled",
        criterion: Criterion = cross_entropy_of_logits,
        adversary_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.adversary: Adversary | None = None
        self._attack, self._schedule = attack, resolve_schedule(schedule)
        self._criterion, self._options = criterion, adversary_options or {}
        self._checkpoint: str | None = None
        if self._schedule.reads_ahead:
            raise ValueError(
                "lookahead has to see the next batch, which the Trainer does not show in step: "
                "use schedule='recycled'."
            )
        super().__init__(*arguments, **options)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process with {self.args.n_gpu} GPUs is nn.DataParallel, whose threads would "
                "share one model's routing: start one process per GPU with torchrun."
            )
        self.add_callback(_SaveCopies(self))  # type: ignore[attr-defined]

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """See `Trainer.train`."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        self._checkpoint = checkpoint or None
        return super().train(resume_from_checkpoint, *arguments, **options)  # type: ignore[misc]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> Any:
        """The Trainer's loss; in training the mean over the batch and the copies that are due."""
        parent = super().compute_loss  # type: ignore[misc]
        if not model.training:
            return parent(model, inputs, return_outputs, num_items_in_batch, **options)
        inputs = dict(inputs)
        adversary = self._adversary(model, inputs)
        labels = {k: inputs.pop(k) for k in (*self.label_names, "shift_labels") if k in inputs}
        if adversary.attack.at is None:
            images = inputs.pop("pixel_values")
            mixed = adversary.mix(images, inputs | labels, self._criterion)
            batch = {**mixed.labels, "pixel_values": mixed.images}
        else:
            mixed = adversary.mix(inputs, labels, self._criterion)
            batch = mixed.images | mixed.labels
        found = parent(model, batch, return_outputs, **options)
        scale = self._share(model, labels, num_items_in_batch)
        return (found[0] * scale, found[1]) if return_outputs else found * scale

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """The Trainer's step, and the gradients that its backward left."""
        loss = super().training_step(*arguments, **options)  # type: ignore[misc]
        assert self.adversary is not None
        self.adversary.collect()
        return loss  # type: ignore[no-any-return]

    def _adversary(self, model: nn.Module, inputs: dict[str, Any]) -> Adversary:
        if self.adversary is None:
            attack = self._attack
            if attack.at is None and "pixel_values" not in inputs:
                bare = self.accelerator.unwrap_model(model)
                table = bare.get_input_embeddings()
                at = next(name for name, module in bare.named_modules() if module is table)
                attack = replace(attack, at=at)
            self.adversary = Adversary(model, attack, self._schedule, **self._options)
        if self._checkpoint is not None:
            load_rank(self.adversary, self._checkpoint)
            self._checkpoint = None
        return self.adversary

    def _share(self, model: nn.Module, labels: dict[str, Any], num_items: Any) -> Any:
        """Factor on a mean over this micro-batch, where the Trainer divides by no number."""
        if num_items is None or not (self.model_accepts_loss_kwargs or self.compute_loss_func):
            return 1.0
        model = self.accelerator.unwrap_model(model)
        counted = labels.get("shift_labels", labels["labels"])
        if "shift_labels" not in labels and _leaves_out_first_label(model):
            counted = counted[..., 1:]
        share = counted.ne(-100).sum() / num_items
        if self.args.average_tokens_across_devices:  # num_items is then that of all processes
            share = share * self.accelerator.num_processes
        return share


class ConAdvTrainer(ConAdvMixin, Trainer):
    """Hugging Face's Trainer with adversarial copies: see `ConAdvMixin`."""


class _SaveCopies(TrainerCallback):
    """Writes what is pending beside the checkpoint that the Trainer has just written."""

    def __init__(self, trainer: ConAdvMixin) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.trainer.adversary is not None and not args.save_only_model:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            save_rank(self.trainer.adversary, Path(args.output_dir) / folder)


def _leaves_out_first_label(model: nn.Module) -> bool:
    """Whether its loss predicts each word from those before: the first is none to predict."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(model, "loss_function", None) is ForCausalLMLoss

"""conadv in Lightning: a callback for the Trainer, and `setup` for Fabric."""

import warnings
from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import Tensor, nn, optim

from conadv.adversary import Adversary
from conadv.attack import Attack, Criterion
from conadv.integrations._extra import extra
from conadv.schedules import Schedule

with extra("lightning"):
    from lightning.fabric import Fabric
    from lightning.pytorch import Callback, LightningModule, Trainer


class ConAdv(Callback):
    """Takes the images' gradients after each backward pass, and keeps them in checkpoints.

    The module splits its network and makes its adversary in ``__init__``. With ``mix=True`` nothing
    else changes: ``training_step`` is given images and copies, and computes its own loss, a mean
    over all rows. Otherwise it returns ``self.adversary.loss(images, labels, criterion)``. Both go
    with automatic and with manual optimisation. A checkpoint holds what is pending on every rank.
    The adversary is given the bare network, for Lightning puts DDP around the module.

    Args:
        attribute: of the module, which holds the adversary.
        mix: give ``training_step`` the batch of `Adversary.mix`. True: batches are (images,
            labels). A key: batches are dicts, in which it is the images' name.
        criterion: with `mix`, of schedules that attack (sequential); see `Adversary.mix`.

    Raises:
        ValueError: there is no adversary, or it reads ahead (lookahead), which the Trainer's
            loop does not let it; a batch of another form than `mix` says.

    Example:
        >>> trainer = Trainer(max_epochs=90, callbacks=[ConAdv(mix=True)])
    """

    def __init__(
        self,
        attribute: str = "adversary",
        *,
        mix: bool | str = False,
        criterion: Criterion | None = None,
    ) -> None:
        self.attribute = attribute
        self.mix, self.criterion = mix, criterion
        self._resumed: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether there is an adversary, and one that can work here."""
        adversary = getattr(pl_module, self.attribute, None)
        if not isinstance(adversary, Adversary):
            raise ValueError(
                f"{type(pl_module).__name__}.{self.attribute} is no Adversary: make one in "
                "__init__, self.adversary = conadv.Adversary(self.network, attack)."
            )
        if adversary.schedule.reads_ahead:
            raise ValueError(
                "lookahead has to see the next batch, which Lightning's loop does not show in "
                "step: use schedule='recycled', or Fabric, where the loop is yours."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give each rank its copies back, now that the network is on its device."""
        if self._resumed is not None:
            self._adversary(pl_module).load_gathered(self._resumed)
            self._resumed = None
        if self.mix:
            step = pl_module.training_step

            @wraps(step)
            def with_copies(batch: Any, *arguments: Any, **options: Any) -> Any:
                return step(self._mixed(self._adversary(pl_module), batch), *arguments, **options)

            pl_module.training_step = with_copies

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own step back."""
        vars(pl_module).pop("training_step", None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the module its own step back."""
        self.on_train_end(trainer, pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect."""
        self._adversary(pl_module).collect()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Every rank's copies, which only rank 0 writes."""
        checkpoint["conadv"] = self._adversary(pl_module).gathered_state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep them until training starts."""
        self._resumed = checkpoint.get("conadv")
        if self._resumed is None:
            warnings.warn(
                "The checkpoint was written without the callback ConAdv: the first step of the "
                "resumed run has no adversarial copies.",
                stacklevel=2,
            )

    def _mixed(self, adversary: Adversary, batch: Any) -> Any:
        if isinstance(self.mix, str) and isinstance(batch, Mapping) and self.mix in batch:
            others = {key: value for key, value in batch.items() if key != self.mix}
            mixed = adversary.mix(batch[self.mix], others, self.criterion)
            return {self.mix: mixed.images, **mixed.labels}
        if self.mix is True and isinstance(batch, tuple | list) and len(batch) == 2:
            images, labels = batch
            return adversary.mix(images, labels, self.criterion)[:2]
        raise ValueError(
            f"mix={self.mix!r}, and the batch is a {type(batch).__name__}: ConAdv(mix=True) takes "
            "(images, labels), ConAdv(mix='key') a dict with images of that name. For others let "
            "training_step call self.adversary.mix(images, labels), without mix."
        )

    def _adversary(self, module: LightningModule) -> Adversary:
        return getattr(module, self.attribute)  # type: ignore[no-any-return]


class FabricAdversary(Adversary):
    """An adversary in Fabric's precision, whose state holds what is pending on every rank."""

    def __init__(self, fabric: Fabric, model: nn.Module, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self._fabric = fabric

    def loss(self, *arguments: Any, **options: Any) -> Tensor:
        """See `Adversary.loss`; attacks run in the precision of the forward pass too."""
        with self._fabric.autocast():
            return super().loss(*arguments, **options)

    def state_dict(self) -> dict[str, Any]:
        """State of all ranks, for `fabric.save`, which writes rank 0's: all have to call it."""
        return self.gathered_state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Give each rank its own part."""
        self.load_gathered(state)


def setup(
    fabric: Fabric,
    model: nn.Module,
    optimizer: optim.Optimizer,
    attack: Attack,
    schedule: str | Schedule = "recycled",
    **options: Any,
) -> tuple[nn.Module, Any, FabricAdversary]:
    """`fabric.setup` for model and optimizer, and the adversary that goes with them.

    ``fabric.save(path, {"model": model, "optimizer": optimizer, "adversary": adversary})`` holds
    what is pending on every rank, and ``fabric.load`` gives it back.

    Args:
        fabric: of the run.
        model: split with `split_norms`, not yet set up.
        optimizer: of the split model.
        attack: what one adversarial step is.
        schedule: a name or a schedule object.
        **options: more for `Adversary`.

    Returns:
        The model and optimizer that `fabric.setup` gives, and the adversary.

    Example:
        >>> model, optimizer, adversary = setup(fabric, model, optimizer, attack)
        >>> for images, labels in adversary.batches(fabric.setup_dataloaders(loader)):
        ...     fabric.backward(adversary.loss(images, labels, criterion))
        ...     adversary.collect()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    model, optimizer = fabric.setup(model, optimizer)
    return model, optimizer, FabricAdversary(fabric, model, attack, schedule, **options)

"""The parts of a recipe. Every field says in one sentence what it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from conadv.trainer.models.names import FORMS, check_name
from conadv.trainer.recipe.updates import OPTIMIZERS, optimizer_names
from conadv.trainer.recipe.values import ClassWeights, Flag, Number, Section, Text, Whole, one_of

LOSS_NAMES = ("cross_entropy", "bce", "focal")

BRANCHES = ("clean", "adversarial")
"""Normalisation branches of every model that the trainer makes with copies."""
VIEW_BRANCH = "augmented"
"""A further one, for second views (method.view)."""

Branch = Literal["clean", "adversarial"]


class ModelSection(Section):
    """Which network."""

    name: Annotated[Text, AfterValidator(check_name)] = Field(
        default="cifar/resnet8", json_schema_extra={"allowed": FORMS}
    )
    """Network: cifar/NAME (small images), torchvision/NAME, timm/NAME, or module:attribute of one's
    own: a network, or what makes one from in_chans, num_classes and model.options."""
    in_chans: Whole | None = Field(default=None, ge=1)
    """Image channels; null takes them from the data."""
    num_classes: Whole | None = Field(default=None, ge=2)
    """Number of classes; null takes it from the data."""
    pretrained: Flag = False
    """Start from downloaded weights (timm, torchvision)."""
    weights: Text | None = None
    """Start from the weights in a file (.safetensors, or a state dict in .pt or .pth) or in a run
    folder. The last layer is new where its shape differs."""
    freeze: tuple[Text, ...] = Field(
        default=(), json_schema_extra={"allowed": "a list of patterns, such as [conv1.*, layer1.*]"}
    )
    """Parameters that stay as they are, by name; * stands for anything. Running statistics of
    frozen batch norm layers still follow the images."""
    zero_init_last: Flag = True
    """Start the last gamma of every residual block at 0."""
    options: dict[str, Any] = Field(default={})
    """Further keyword arguments of the network's constructor."""


class BatchSection(Section):
    """How many images: per weight update, per forward pass, per normalisation group."""

    global_batch: Whole = Field(default=1024, ge=1)
    """Images per weight update (fixed budget: copies included)."""
    micro_batch: Whole | None = Field(default=None, ge=1)
    """Images per forward pass, a divisor of global_batch; null takes the largest up to 128."""
    norm_group: Whole | None = Field(default=None, ge=2)
    """Images per normalisation group, a divisor of micro_batch; null takes micro_batch."""


class NormSection(Section):
    """How clean and adversarial images are normalised."""

    statistics: Literal["separate", "affine", "shared"] = "separate"
    """Batch norm of the two branches: all separate, separate affine parameters only, or one shared
    layer."""
    layer_norm: Flag = False
    """Also split the affine parameters of LayerNorm, GroupNorm, RMSNorm."""


class AttackSection(Section):
    """What one adversarial step is."""

    epsilon: Number = Field(default=4 / 255, ge=0)
    """Radius in pixel units of images on [0, 1], such as 4/255."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the radius."""
    steps: Whole = Field(default=1, ge=1, le=1000)
    """Gradient steps."""
    step_size: Number | None = Field(default=None, gt=0)
    """Size of one step in pixel units; null: epsilon for one step, 2.5 epsilon / steps for several.
    """
    random_start: Number = Field(default=0.0, ge=0, le=1)
    """Probability of starting from a random point of the ball."""
    epsilon_min: Number | None = Field(default=None, ge=0)
    """Draw each copy's radius uniformly between this and epsilon; null: epsilon for all."""
    block_size: Whole = Field(default=1, ge=1)
    """Side of the squares of pixels on which perturbations are constant: above 1 they are of low
    frequency."""
    target: Literal["random"] | None = None
    """Climb the true label's loss (null), or descend to a random wrong class."""
    branch: Branch | None = None
    """Normalisation branch that the attack goes through; null: the schedule's."""
    mode: Literal["train", "eval"] | None = None
    """Mode of the network while it is attacked; null means train."""


class OptimizerSection(Section):
    """How weights are updated."""

    name: Annotated[Text, one_of("optimizer", optimizer_names)] = Field(
        default="lars",
        json_schema_extra={
            "allowed": f"{', '.join(OPTIMIZERS)}, a class of torch.optim, or module:attribute"
        },
    )
    """lars, lamb, sgd, adamw, muon (its classifier and vectors by AdamW), the name of a class in
    torch.optim, or module:attribute of one's own, called with (groups, **options)."""
    lr: Number = Field(default=1.0, gt=0)
    """Peak learning rate, or with lr_rule its value at lr_base_batch."""
    lr_rule: Literal["none", "linear", "sqrt"] = "none"
    """How lr grows with global_batch / lr_base_batch."""
    lr_base_batch: Whole = Field(default=256, ge=1)
    """Batch that lr is meant for (lr_rule)."""
    momentum: Number = Field(default=0.9, ge=0, lt=1)
    """Momentum (lars, sgd)."""
    weight_decay: Number = Field(default=5e-5, ge=0)
    """Weight decay; bias and norm parameters never get any."""
    trust_coefficient: Number = Field(default=0.001, gt=0)
    """Factor on the layer-wise trust ratio (lars)."""
    nesterov: Flag = False
    """Nesterov momentum (lars, sgd)."""
    lr_in_momentum: Flag = True
    """Keep the learning rate inside the momentum buffer (lars), as the published recipes do; false
    is timm's form."""
    betas: tuple[Number, Number] | None = None
    """Decay rates of the two moments (lamb, adam, muon's AdamW); null: its own default."""
    eps: Number | None = Field(default=None, ge=0)
    """Term that keeps denominators off zero; null: its own default."""
    lr_factors: dict[str, Number] = Field(default={})
    """Factors on the learning rate of some parameters, by the first pattern that their name
    matches: {"fc.*": 10, "layer1.*": 0.1}."""
    variance_reduction: Flag = False
    """Scale each gradient value by its signal-to-noise ratio over the micro-batches (lars, sgd):
    VR-LARS."""
    gsnr_gamma: Number = Field(default=0.1, gt=0, le=1)
    """Lower bound of that scale (variance_reduction)."""
    gsnr_momentum: Number = Field(default=0.0, ge=0, lt=1)
    """Momentum of that scale (variance_reduction); 0: this step's alone."""
    options: dict[str, Any] = Field(default={})
    """Further keyword arguments of the optimizer's constructor."""

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas


class LrScheduleSection(Section):
    """How the learning rate moves over training."""

    warmup_epochs: Number = Field(default=0.0, ge=0)
    """Epochs over which the learning rate rises linearly from 0."""
    decay: Literal["poly", "cosine", "constant"] = "poly"
    """How it falls afterwards."""
    power: Number = Field(default=2.0, gt=0)
    """Power of the polynomial decay."""
    end_factor: Number = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a factor on the peak."""


class TrainSection(Section):
    """How long, and the loss."""

    epochs: Number | None = Field(default=None, gt=0)
    """Passes over the fresh training images; give this or steps."""
    steps: Whole | None = Field(default=None, ge=1)
    """Weight updates; give this or epochs."""
    steps_factor: Number = Field(default=1.0, gt=0)
    """Factor on the length of training, warm-up included: with 2, vanilla has the compute of
    recycled."""
    label_smoothing: Number = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the loss."""
    loss: Annotated[Text, one_of("loss", LOSS_NAMES)] = Field(
        default="cross_entropy",
        json_schema_extra={"allowed": f"{', '.join(LOSS_NAMES)}, or module:attribute"},
    )
    """cross_entropy, bce (each class against the rest), focal, or module:attribute of one's own: a
    class of losses, or a function of (logits, labels) that gives their mean."""
    loss_options: dict[str, Any] = Field(default={})
    """Keyword arguments of the loss: gamma of focal, or one's own."""
    class_weights: ClassWeights = Field(
        default=None,
        json_schema_extra={
            "allowed": "balanced, or a list of one number above 0 per class, or null"
        },
    )
    """Weight of each class's images in the loss; balanced: classes count alike, whatever their
    number of training images."""
    mixup: Number = Field(default=0.0, ge=0)
    """Mix pairs of images and labels, shares drawn from Beta(a, a); 0: no."""
    cutmix: Number = Field(default=0.0, ge=0)
    """Paste a patch of another image and its label, area drawn from Beta(a, a); 0: no. With mixup,
    one of the two by turns of a coin."""
    ema_decay: Number | None = Field(default=None, gt=0, lt=1)
    """Evaluate an average of the weights of this decay; null: no."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when the loss is NaN or infinite."""
    clip_grad_norm: Number | None = Field(default=None, gt=0)
    """Largest norm of the whole gradient; null: no clipping."""


class EvaluationSection(Section):
    """What is measured, and how often."""

    every_epochs: Number = Field(default=1.0, gt=0)
    """Epochs between looks at the validation split."""
    batch: Whole = Field(default=500, ge=1)
    """Images per forward pass."""
    robust_epsilon: Number | None = Field(default=None, ge=0)
    """Radius of the test attack, in pixel units; null: attack.epsilon."""
    robust_steps: Whole = Field(default=0, ge=0, le=1000)
    """Steps of the test attack (PGD); 0 is one full step (FGSM)."""
    robust_images: Whole | None = Field(default=1000, ge=1)
    """Attack only so many test images; null: all."""
    branch: Branch = "clean"
    """Normalisation branch that is evaluated."""
    test: Flag = True
    """Measure on the test images at the end; false for runs that settings are chosen by."""


class CheckpointSection(Section):
    """When the state of training is saved, besides at the end and when interrupted."""

    every_steps: Whole | None = Field(default=None, ge=1)
    """Steps between checkpoints."""
    every_minutes: Number | None = Field(default=10.0, gt=0)
    """Minutes between checkpoints."""
    keep: Whole = Field(default=2, ge=1)
    """Number of newest checkpoints that stay."""


LOGGER_NAMES = ("tensorboard", "wandb", "mlflow")


class LoggingSection(Section):
    """Where curves and pictures go, besides the run folder's own files."""

    loggers: tuple[Annotated[Text, one_of("logger", LOGGER_NAMES)], ...] = Field(
        default=("tensorboard",),
        json_schema_extra={"allowed": f"a list of {', '.join(LOGGER_NAMES)}, or module:attribute"},
    )
    """Services for people who watch; [] for none. module:attribute is one's own: what makes a
    Logger from a LoggedRun and its options. A failure of one stops no run."""
    options: dict[str, dict[str, Any]] = Field(default={})
    """Keyword arguments of each, by name: {"wandb": {"project": "mine"}}."""

    @model_validator(mode="after")
    def _check(self) -> LoggingSection:
        for name in self.options:
            if name not in self.loggers:
                raise ValueError(f"options.{name}: {name} is not among loggers; add it there")
        return self


class HardwareSection(Section):
    """Where and in which precision."""

    device: Text = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Device to train on."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast precision; auto takes bf16 where the hardware computes in it."""
    channels_last: Flag = True
    """Keep images in channels-last memory format."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each holds all weights (DistributedDataParallel), or a part of them
    (fully_shard), for models that do not fit."""
    compile: Flag = False
    """Compile the network with torch.compile."""
    threads: Whole | None = Field(default=None, ge=1)
    """CPU threads of each process; null: torch's default, or the cores shared out."""
    timeout: Number = Field(default=300.0, ge=1)
    """Seconds after which a process that is stuck stops all of them."""

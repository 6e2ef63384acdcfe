"""Training with Hugging Face's Trainer, in this process and on two ranks."""

from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
)

import conadv
from conadv.integrations.transformers import ConAdvTrainer
from conadv.optim import LAMB, param_groups
from support.loops import ATTACK, CLASSES, sgd
from support.trainers import SIZE, STEPS, act_as_rank, data, outcome, plain_loop, shared_folder

WORLD = 2
LENGTH, WORDS, WIDTH = 6, 30, 16
TEXT_ATTACK = conadv.Attack(epsilon=0.02, pixel_range=None)


def resnet() -> nn.Module:
    torch.manual_seed(3)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    )
    return conadv.split_norms(ResNetForImageClassification(config))


def bert() -> nn.Module:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=WIDTH, n_layer=1, n_head=2)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, name, 0.0)
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


def criterion(outputs: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels)


def images_of(micro_batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {"pixel_values": image, "labels": label}
        for images, labels in micro_batches
        for image, label in zip(images, labels, strict=True)
    ]


def texts(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    labels = torch.randint(CLASSES, (count,), generator=generator)
    rows = zip(tokens, mask, labels, strict=True)
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in rows]


class InOrder(ConAdvTrainer):
    """Takes the rows as they come; old releases have no argument for it."""

    def _get_train_sampler(self, *arguments: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


def trainer(
    model: nn.Module,
    dataset: Any,
    folder: Path,
    *,
    optimizer: Any = None,
    attack: conadv.Attack = ATTACK,
    schedule: str = "recycled",
    bf16: bool = False,
    accumulation: int = 1,
    clip: float | None = None,
    **options: Any,
) -> ConAdvTrainer:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=bf16,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=clip or 0.0,
        num_train_epochs=1,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        **{"save_strategy": "no", "per_device_train_batch_size": SIZE, **options},
    )
    return InOrder(
        model,
        arguments,
        train_dataset=dataset,
        optimizers=(optimizer or sgd(model), None),
        attack=attack,
        schedule=schedule,
        adversary_options={"forward": "joint"},
    )


def train(folder: Path, ranks: int = 1, **options: Any) -> dict[str, Any]:
    model = resnet()
    dataset = images_of(data(options.get("accumulation", 1), ranks))
    run = trainer(model, dataset, folder, **options)
    run.train()
    return outcome(model, run.adversary)


def resume(folder: Path, ranks: int = 1) -> dict[str, Any]:
    """All steps with a checkpoint in the middle, which a new process's objects go on from."""
    dataset = images_of(data(ranks=ranks))
    saving = {"save_strategy": "steps", "save_steps": STEPS // 2}
    trainer(resnet(), dataset, folder, **saving).train()
    model = resnet()
    run = trainer(model, dataset, folder, **saving)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}"))
    return outcome(model, run.adversary)


def train_text(folder: Path, attack: conadv.Attack) -> tuple[nn.Module, conadv.Adversary]:
    model = bert()
    optimizer = LAMB(param_groups(model, weight_decay=0.01), lr=0.01)
    run = trainer(model, texts(STEPS * SIZE), folder, optimizer=optimizer, attack=attack)
    run.train()
    assert run.adversary is not None
    return model, run.adversary


def plain_text(attack: conadv.Attack) -> tuple[nn.Module, Tensor]:
    """The same by hand, without conadv but for the optimizer: the model and the last copies."""
    model = bert()
    optimizer = LAMB(param_groups(model, weight_decay=0.01), lr=0.01)
    samples, copies = texts(STEPS * SIZE), None
    for start in range(0, STEPS * SIZE, SIZE):
        rows = samples[start : start + SIZE]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        own = torch.zeros(SIZE, LENGTH, WIDTH, requires_grad=True)
        delta, mixed = own, batch
        if copies is not None:
            delta = torch.cat([own, copies[0]])
            mixed = {key: torch.cat([batch[key], copies[1][key]]) for key in batch}
        embeddings = model.get_input_embeddings()(mixed["input_ids"]) + delta
        outputs = model(inputs_embeds=embeddings, attention_mask=mixed["attention_mask"])
        criterion(outputs, mixed["labels"]).backward()
        assert own.grad is not None
        step = own.grad.sign()
        if attack.norm == "l2":  # of each token; one that is masked has no gradient
            step = own.grad / own.grad.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        copies = attack.epsilon * step, batch
        optimizer.step()
        optimizer.zero_grad()
    assert copies is not None
    return model, copies[0]


def cases(world: int) -> dict[tuple[str, ...], Any]:
    """For `support.gloo.run_cases`: (by the Trainer, by hand) on each rank."""

    def case(rank: int, function: Any, **options: Any) -> dict[str, Any]:
        act_as_rank(rank, world)
        mine = data(options.get("accumulation", 1), world)[rank::world]
        found = function(shared_folder(), ranks=world, **options)
        plain = plain_loop(mine, model=resnet(), criterion=criterion, ddp=True, **options)
        return {"trainer": found, "plain": outcome(*plain)}

    return {
        ("fp32",): lambda rank: case(rank, train),
        ("accumulation",): lambda rank: case(rank, train, accumulation=2),
        ("resume",): lambda rank: case(rank, resume),
    }

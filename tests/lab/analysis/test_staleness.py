"""Agreement of perturbations where it is known, and summaries of a made-up log."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

import conadv
from conadv.lab.analysis import (
    LoggedAgreement,
    agreement_over_training,
    perturbation_agreement,
)
from support.nets import conv_net, images, perturb_norms, twin


class Linear(nn.Module):
    """Logits (w x, 0): the perturbation of an image is epsilon * sign(w), up to its label."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        z = images.flatten(1) @ self.weight
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def batch() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(30, 3, 2, 2, generator=generator) * 0.6 + 0.2  # nothing is clipped
    labels = torch.randint(0, 2, (30,), generator=generator)
    return list(zip(pixels.split(8), labels.split(8), strict=True))


def test_a_linear_model_agrees_however_far_it_has_learnt() -> None:
    """The direction of the input gradient is w itself: a longer w changes nothing."""
    weight = torch.randn(12, generator=torch.Generator().manual_seed(1))
    for norm in ("linf", "l2"):
        attack = conadv.Attack(0.1, norm=norm)
        found = perturbation_agreement(Linear(weight), Linear(3 * weight), batch(), attack)
        assert found.cosine == pytest.approx(1.0, abs=1e-5)
        assert (found.same_sign, found.images) == (1.0, 30)


def test_chance_is_zero_in_mid_range_and_not_on_black_images() -> None:
    """Black pixels go up or stay: of two random halves a quarter is common, a cosine of 1/2."""
    weight = torch.randn(3072, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(20, dtype=torch.long)
    found = {}
    for value in (0.0, 0.5):
        pixels = torch.full((20, 3, 32, 32), value)
        attack = conadv.Attack(0.1)
        found[value] = perturbation_agreement(
            Linear(weight), Linear(weight), [(pixels, labels)], attack
        )
        assert found[value].cosine == pytest.approx(1.0, abs=1e-5)
    assert found[0.5].chance == pytest.approx(0.0, abs=4 / (20 * 3072) ** 0.5)
    assert found[0.0].chance == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("flipped", [0, 3, 6, 12])
def test_flipped_weights_of_a_linear_model(flipped: int) -> None:
    """k of 12 signs differ: the cosine of the sign steps is 1 - 2 k / 12."""
    weight = torch.randn(12, generator=torch.Generator().manual_seed(1))
    signs = torch.ones(12)
    signs[:flipped] = -1
    attack = conadv.Attack(0.1, random_start=0.0)
    found = perturbation_agreement(Linear(weight), Linear(weight * signs), batch(), attack)
    assert found.cosine == pytest.approx(1 - 2 * flipped / 12, abs=1e-5)
    assert found.same_sign == pytest.approx(1 - flipped / 12, abs=1e-9)


def test_in_pixels_of_any_standardisation() -> None:
    """L2 steps in pixels: cosines of standardised differences would weigh channels by 1 / std."""
    std = (0.1, 0.2, 0.8)
    old, new = (torch.randn(12, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    attack = conadv.Attack(0.1, mean=(0.0,) * 3, std=std, norm="l2", pixel_range=None)
    found = perturbation_agreement(Linear(old), Linear(new), batch(), attack)
    scale = torch.tensor(std).repeat_interleave(4)
    # d loss / d pixel = w / std, and the step follows it.
    expected = float(cosine_similarity(old / scale, new / scale, dim=0))
    assert abs(expected - float(cosine_similarity(old, new, dim=0))) > 0.05
    assert found.cosine == pytest.approx(expected, abs=1e-4)


def test_equal_networks_agree_through_chance_and_training_mode() -> None:
    """Dropout, random starts and random targets are drawn alike for both."""
    model = nn.Sequential(
        perturb_norms(conadv.split_norms(conv_net())), nn.Dropout(0.5), nn.Linear(5, 5)
    )
    attack = conadv.Attack(8 / 255, random_start=0.8, target="random", branch="adversarial")
    labels = torch.randint(0, 5, (8,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = perturbation_agreement(model, twin(model), [(images(), labels)], attack)
    assert found.cosine == pytest.approx(1.0, abs=1e-6) and found.same_sign == 1.0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    other = twin(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert perturbation_agreement(model, other, [(images(), labels)], attack).cosine < 0.9


def test_it_is_what_the_adversary_tracks() -> None:
    """Lookahead's copies are one round old: its own figure, from the weights before and after."""
    torch.manual_seed(3)
    model = conadv.split_norms(conv_net())
    attack = conadv.Attack(8 / 255)
    adversary = conadv.Adversary(model, attack, "lookahead", track_agreement=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    given = [(images(), torch.randint(0, 5, (8,))) for _ in range(3)]
    before = twin(model).train()
    for number, (pixels, labels) in enumerate(adversary.batches(given)):
        now = twin(model).train()
        loss = adversary.loss(pixels, labels, cross_entropy)
        loss.backward()
        adversary.collect()
        if number == 1:
            assert adversary.diagnostics.agreement is not None
            tracked = float(adversary.diagnostics.agreement)
            measured = perturbation_agreement(
                before, now, [(pixels, labels)], conadv.Attack(8 / 255, branch="adversarial")
            )
            assert tracked < 0.999
            assert measured.cosine == pytest.approx(tracked, abs=1e-4)
            return
        before = now
        optimizer.step()
        optimizer.zero_grad()
    pytest.fail("there was no second round")


def test_no_perturbation_is_no_agreement() -> None:
    weight = torch.ones(12)
    found = perturbation_agreement(Linear(weight), Linear(weight), batch(), conadv.Attack(0.0))
    assert (found.cosine, found.same_sign) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no images"):
        perturbation_agreement(Linear(weight), Linear(weight), [], conadv.Attack(0.1))


# -- logs --------------------------------------------------------------------------------------


def test_a_log_in_phases() -> None:
    """Agreement falls as the learning rate rises, exactly linearly."""
    logged = [LoggedAgreement(s, s / 10, 1 - s / 20) for s in range(1, 11)]
    found = agreement_over_training(logged, phases=3)
    assert found.mean == pytest.approx(1 - 5.5 / 20)
    assert found.lowest == 0.5
    assert [(p.first_step, p.last_step, p.steps) for p in found.phases] == [
        (1, 3, 3),
        (4, 6, 3),
        (7, 10, 4),
    ]
    assert found.phases[0].learning_rate == pytest.approx(0.2)
    assert found.phases[2].agreement == pytest.approx(1 - 8.5 / 20)
    assert found.lr_correlation == pytest.approx(-1.0)


def test_odd_logs() -> None:
    flat = [LoggedAgreement(s, 0.1, a) for s, a in ((1, 0.5), (2, math.nan), (3, 0.7))]
    found = agreement_over_training(flat, phases=10)
    assert found.lr_correlation is None and len(found.phases) == 2
    assert found.mean == pytest.approx(0.6)
    with pytest.raises(ValueError, match="No agreement"):
        agreement_over_training(flat[1:2])
    with pytest.raises(ValueError, match="phases=0"):
        agreement_over_training(flat, phases=0)

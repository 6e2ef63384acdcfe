"""What an attack computes: closed forms, pixel units, targets, random starts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conadv import Attack

MEAN, STD = (0.49, 0.48, 0.44), (0.2, 0.24, 0.26)
EPSILON = 4 / 255


def standardised(n=6, size=5, *, low=0.0, high=1.0):
    """Random images and the pixels they come from; an eighth of the pixels is saturated."""
    pixels = torch.rand(n, 3, size, size) * (high - low) + low
    pixels[torch.rand_like(pixels) < 1 / 16] = 0.0
    pixels[torch.rand_like(pixels) < 1 / 16] = 1.0
    return ((pixels - channels(MEAN)) / channels(STD)).float(), pixels


def channels(values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def to_pixels(images):
    return images.double() * channels(STD) + channels(MEAN)


class Linear(nn.Module):
    """logit = <weight, x>: the loss below is linear, so the best perturbation is known."""

    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return (x * self.weight).flatten(1).sum(dim=1)


def total(outputs, labels):
    return outputs.mean()


class TestClosedForms:
    def test_linf_on_a_linear_model_moves_every_pixel_by_epsilon(self):
        images, pixels = standardised()
        model = Linear((3, 5, 5))
        copies = Attack(EPSILON, MEAN, STD)(model, images, None, total)
        want = (pixels + EPSILON * model.weight.detach().sign()).clamp(0, 1)
        torch.testing.assert_close(to_pixels(copies).float(), want, atol=1e-6, rtol=0)

    def test_l2_on_a_linear_model_follows_the_pixel_gradient(self):
        images = torch.zeros(4, 3, 5, 5)  # mid-grey: no pixel reaches the range
        model = Linear((3, 5, 5))
        copies = Attack(0.05, MEAN, STD, norm="l2")(model, images, None, total)
        gradient = (model.weight.detach() / channels(STD)[0]).float()  # d loss / d pixel
        want = 0.05 * gradient / gradient.norm()
        got = to_pixels(copies) - to_pixels(images)
        torch.testing.assert_close(got.float(), want.expand_as(images), atol=1e-7, rtol=1e-4)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_many_steps_on_a_linear_model_end_at_the_best_feasible_point(self, norm):
        """The maximum of <w, d> over ball and box is known: many small steps must reach it."""
        pixels = torch.rand(3, 1, 4, 4)
        weight = torch.randn(1, 4, 4)
        model = Linear((1, 4, 4))
        model.weight.data = weight
        epsilon = 0.2 if norm == "linf" else 0.6
        attack = Attack(epsilon, norm=norm, steps=400, step_size=epsilon / 20)
        copies = attack(model, pixels, None, total)
        if norm == "linf":
            want = (pixels + epsilon * weight.sign()).clamp(0, 1)
        else:
            # Karush-Kuhn-Tucker: clip(s * w) with the norm epsilon; s by bisection.
            low, high = torch.zeros(3, 1, 1, 1), torch.full((3, 1, 1, 1), 1e4)
            for _ in range(100):
                s = (low + high) / 2
                want = (pixels + s * weight).clamp(0, 1)
                fits = (want - pixels).flatten(1).norm(dim=1).reshape(s.shape) <= epsilon
                low, high = torch.where(fits, s, low), torch.where(fits, high, s)
        gain = ((copies - pixels) * weight).flatten(1).sum(dim=1)
        best = ((want - pixels) * weight).flatten(1).sum(dim=1)
        torch.testing.assert_close(gain, best, rtol=1e-3, atol=0)

    def test_the_step_is_that_of_autograd_by_hand(self):
        images, _ = standardised()
        labels = torch.tensor([0, 1, 2, 3, 4, 0])
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(36, 5))
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)
        pixels = (to_pixels(images) + EPSILON * gradient.sign()).clamp(0, 1)
        want = ((pixels - channels(MEAN)) / channels(STD)).float()
        copies = Attack(EPSILON, MEAN, STD)(model, images, labels, F.cross_entropy)
        torch.testing.assert_close(copies, want, atol=1e-6, rtol=0)

    def test_pgd_is_that_of_the_textbook(self):
        """Madry et al.: step on the sign, clip to the ball around the image, clip to [0, 1]."""
        pixels = torch.rand(4, 3, 6, 6)
        labels = torch.tensor([0, 1, 2, 0])
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 3))
        iterate = pixels
        for _ in range(5):
            leaf = iterate.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)
            iterate = iterate + 0.01 * gradient.sign()
            iterate = torch.clamp(iterate, pixels - 0.03, pixels + 0.03).clamp(0, 1)
        attack = Attack(0.03, steps=5, step_size=0.01)
        copies = attack(model, pixels, labels, F.cross_entropy)
        torch.testing.assert_close(copies, iterate, atol=1e-6, rtol=0)

    def test_default_step_sizes(self):
        assert Attack(0.1).resolved_step_size == 0.1
        assert Attack(0.1, steps=10).resolved_step_size == pytest.approx(0.025)
        assert Attack(0.1, steps=10, step_size=0.3).resolved_step_size == 0.3


class TestPixelUnits:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("steps", [1, 3])
    @pytest.mark.parametrize("start", [0.0, 1.0])
    def test_copies_lie_in_the_ball_and_in_the_range(self, norm, steps, start):
        epsilon = 8 / 255 if norm == "linf" else 0.5
        images, _ = standardised(16)
        attack = Attack(epsilon, MEAN, STD, norm=norm, steps=steps, random_start=start)
        copies = attack(Linear((3, 5, 5)), images, None, total)
        pixels, delta = to_pixels(copies), to_pixels(copies) - to_pixels(images)
        assert pixels.min() >= -1e-7
        assert pixels.max() <= 1 + 1e-7
        size = delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
        assert size <= epsilon + 1e-6
        assert size > 0.9 * epsilon

    def test_the_range_holds_to_the_last_bit_in_the_units_of_the_model(self):
        """Rounding of image + delta / std must not pass what a white pixel is."""
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
        images = (torch.rand(4000, 3, 1, 1) - mean) / std
        white, black = (1 - mean) / std, (0 - mean) / std
        model = Linear((3, 1, 1))
        model.weight.data.fill_(1.0)
        copies = Attack(1.0, MEAN, STD)(model, images, None, total)
        assert (copies <= white).all()
        torch.testing.assert_close(copies, white.expand_as(copies))
        model.weight.data.fill_(-1.0)
        copies = Attack(1.0, MEAN, STD)(model, images, None, total)
        assert (copies >= black).all()
        torch.testing.assert_close(copies, black.expand_as(copies))

    def test_saturated_pixels_only_move_inwards(self):
        pixels = torch.tensor([[[[0.0, 1.0]]]])
        model = Linear((1, 1, 2))
        model.weight.data = torch.tensor([[[-1.0, 1.0]]])  # outwards, both
        assert torch.equal(Attack(0.1)(model, pixels, None, total), pixels)
        model.weight.data.neg_()
        torch.testing.assert_close(
            Attack(0.1)(model, pixels, None, total), torch.tensor([[[[0.1, 0.9]]]])
        )

    def test_pixels_slightly_outside_may_stay_but_not_leave_further(self):
        pixels = torch.tensor([[[[-0.05, 1.05]]]])
        model = Linear((1, 1, 2))
        model.weight.data = torch.tensor([[[-1.0, 1.0]]])
        assert torch.equal(Attack(0.1)(model, pixels, None, total), pixels)
        model.weight.data.neg_()
        torch.testing.assert_close(
            Attack(0.1)(model, pixels, None, total), torch.tensor([[[[0.05, 0.95]]]])
        )

    def test_another_pixel_range(self):
        pixels = torch.tensor([[[[10.0, 254.0]]]])
        model = Linear((1, 1, 2))
        model.weight.data.fill_(1.0)
        copies = Attack(4, pixel_range=(0, 255))(model, pixels, None, total)
        assert copies.tolist() == [[[[14.0, 255.0]]]]

    def test_one_number_for_all_channels(self):
        images = torch.randn(2, 3, 4, 4).clamp(-1, 1)
        model = Linear((3, 4, 4))
        one = Attack(EPSILON, 0.5, 0.5)(model, images, None, total)
        three = Attack(EPSILON, [0.5] * 3, [0.5] * 3)(model, images, None, total)
        assert torch.equal(one, three)

    @pytest.mark.parametrize("shape", [(4, 7), (4, 3, 7), (4, 3, 5, 5), (4, 3, 2, 5, 5)])
    def test_channels_are_the_second_dimension_whatever_follows(self, shape):
        mean, std = (0.5,) * shape[1], tuple(0.1 * (i + 1) for i in range(shape[1]))
        images = torch.zeros(shape)
        model = Linear(shape[1:])
        copies = Attack(0.02, mean, std)(model, images, None, total)
        delta = (
            copies.abs() * torch.tensor(std).reshape(1, -1, *([1] * (len(shape) - 2)))
        ).flatten()
        torch.testing.assert_close(delta, torch.full_like(delta, 0.02))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_embeddings_have_no_range(self, norm):
        tokens = torch.randn(3, 6, 8) * 50
        attack = Attack(5.0, norm=norm, pixel_range=None)
        delta = attack(Linear((6, 8)), tokens, None, total) - tokens
        size = delta.abs().amax(dim=(1, 2)) if norm == "linf" else delta.flatten(1).norm(dim=1)
        torch.testing.assert_close(size, torch.full((3,), 5.0), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtype_is_kept_and_the_projection_is_not_done_in_it(self, dtype):
        images, _ = standardised()
        images = images.to(dtype)
        model = Linear((3, 5, 5)).to(dtype)
        copies = Attack(EPSILON, MEAN, STD)(model, images, None, total)
        assert copies.dtype == dtype
        pixels = to_pixels(images)
        want = pixels + EPSILON * model.weight.detach().double().sign()
        want = torch.where(want > 1, pixels.clamp(min=1), want)
        want = torch.where(want < 0, pixels.clamp(max=0), want)
        # Half a unit in the last place of the standardised values, in pixels: nothing more.
        ulp = torch.finfo(dtype).eps * float(copies.abs().max()) * max(STD)
        assert (to_pixels(copies) - want).abs().max() <= ulp + 1e-9

    def test_nan_in_the_gradient_leaves_the_pixel(self):
        images = torch.full((1, 1, 1, 3), 0.5)
        model = Linear((1, 1, 3))
        model.weight.data = torch.tensor([[[math.nan, math.inf, 1.0]]])
        copies = Attack(0.1)(model, images, None, total)
        torch.testing.assert_close(copies, torch.tensor([[[[0.5, 0.6, 0.6]]]]))


class TestRandomStart:
    def test_the_given_share_of_images_starts_elsewhere(self):
        images = torch.full((2000, 1, 2, 2), 0.5)
        attack = Attack(0.1, random_start=0.8)
        started = attack.start(images, torch.Generator().manual_seed(1))
        moved = (started != images).flatten(1).any(dim=1)
        assert 0.77 < float(moved.float().mean()) < 0.83  # 3.4 standard deviations
        offsets = (started - images)[moved].flatten()
        histogram = torch.histc(offsets, 10, -0.1, 0.1)
        expected = len(offsets) / 10
        assert ((histogram - expected).square() / expected).sum() < 30

    def test_probability_zero_starts_at_the_image_and_one_never_does(self):
        images = torch.full((50, 1, 2, 2), 0.5)
        assert torch.equal(Attack(0.1).start(images, torch.Generator()), images)
        started = Attack(0.1, random_start=1.0).start(images, torch.Generator())
        assert (started != images).flatten(1).any(dim=1).all()

    def test_the_step_is_projected_around_the_image_and_not_the_start(self):
        images = torch.full((200, 1, 2, 2), 0.5)
        model = Linear((1, 2, 2))
        copies = Attack(0.1, random_start=1.0)(model, images, None, total)
        # From anywhere in the ball a step of epsilon reaches at least the middle of the face.
        along = (copies - images) * model.weight.detach().sign()
        assert along.min() >= -1e-6
        assert along.max() <= 0.1 + 1e-6
        assert float(along.std()) > 0.01

    def test_the_generator_decides(self):
        images = torch.full((4, 1, 2, 2), 0.5)
        attack = Attack(0.1, random_start=1.0)

        def copies(seed):
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            return attack(Linear((1, 2, 2)), images, None, total, generator=generator)

        torch.manual_seed(0)
        first = copies(1)
        torch.manual_seed(0)
        assert torch.equal(copies(1), first)
        torch.manual_seed(0)
        assert not torch.equal(copies(2), first)


def test_noise_has_the_size_of_an_attack():
    images, pixels = standardised(8, low=0.1, high=0.9)
    noisy = Attack(EPSILON, MEAN, STD).noise(images, torch.Generator())
    inside = (pixels > 0.05) & (pixels < 0.95)
    delta = (to_pixels(noisy) - pixels)[inside].float()
    torch.testing.assert_close(delta.abs(), torch.full((len(delta),), EPSILON), atol=1e-6, rtol=0)
    assert abs(float(delta.sign().mean())) < 0.2

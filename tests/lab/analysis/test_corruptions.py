"""Corruptions against Pillow, scikit-image, SciPy, and what is known of noise."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.lab.analysis import corrupt, corruption_accuracy
from conadv.lab.analysis.corruptions import CORRUPTIONS, SEVERITIES
from support.nets import conv_net, perturb_norms


def photograph(channels: int = 3, size: int = 32) -> Tensor:
    """One smooth image with an edge, (1, C, H, W), of bytes / 255."""
    grid = torch.linspace(0, 1, size)
    image = torch.stack([grid[:, None] * grid, 1 - grid[:, None].expand(size, size), grid.sin()
                         .expand(size, size)])[:channels]  # fmt: skip
    image = image.clone()
    image[:, size // 3 : size // 2, size // 4 :] = 0.05
    return ((image * 255).round() / 255)[None]


def as_array(image: Tensor) -> np.ndarray:
    """(H, W, C) of floats."""
    return image[0].permute(1, 2, 0).double().numpy()


def stored(array: np.ndarray) -> Tensor:
    """As CIFAR-10-C keeps it: np.uint8 of floats cuts off."""
    kept = np.uint8(np.clip(array, 0, 1) * 255 + 1e-6)
    return torch.from_numpy(kept).permute(2, 0, 1)[None].float() / 255


def bytes_of(image: Tensor) -> Tensor:
    return (image * 255).round().int()


# -- noise -------------------------------------------------------------------------------------


def grey(value: float, count: int = 40) -> Tensor:
    return torch.full((count, 1, 32, 32), value, dtype=torch.float64)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    ("corruption", "deviation"),
    [
        ("gaussian_noise", lambda s: (0.04, 0.06, 0.08, 0.09, 0.10)[s - 1]),
        ("shot_noise", lambda s: (0.4 / (500, 250, 100, 75, 50)[s - 1]) ** 0.5),
        ("speckle_noise", lambda s: 0.4 * (0.06, 0.1, 0.12, 0.16, 0.2)[s - 1]),
    ],
)
def test_the_spread_of_noise(corruption: str, deviation, severity: int) -> None:
    """40,960 values: the standard deviation is known to 0.4 %, and rounding adds 1/255/12^.5."""
    noise = corrupt(grey(0.4), corruption, severity) - 0.4
    expected = (deviation(severity) ** 2 + 1 / 255**2 / 12) ** 0.5
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    # Cutting off takes half a grey level.
    assert float(noise.mean()) == pytest.approx(-0.5 / 255, abs=4 * expected / 40960**0.5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_its_share(severity: int) -> None:
    noisy = corrupt(grey(100 / 255), "impulse_noise", severity)
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    salt, pepper = float((noisy == 1).double().mean()), float((noisy == 0).double().mean())
    four_sigma = 4 * (share / 2 / 40960) ** 0.5
    assert salt == pytest.approx(share / 2, abs=four_sigma)
    assert pepper == pytest.approx(share / 2, abs=four_sigma)
    untouched = noisy[(noisy > 0) & (noisy < 1)]
    assert torch.allclose(untouched, torch.full_like(untouched, 100 / 255))


def test_noise_depends_on_seed_place_and_kind_and_not_on_batches() -> None:
    images = photograph().expand(6, -1, -1, -1)
    for corruption in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"):
        whole = corrupt(images, corruption, 3, seed=5)
        parts = [corrupt(images[i : i + 2], corruption, 3, seed=5, start=i) for i in (0, 2, 4)]
        assert torch.equal(whole, torch.cat(parts))
        assert not torch.equal(whole[0], whole[1])
        assert not torch.equal(whole, corrupt(images, corruption, 3, seed=6))


# -- against other libraries -------------------------------------------------------------------


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_pixelate_are_pillows(channels: int, severity: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = photograph(channels)
    array = bytes_of(image)[0].permute(1, 2, 0).byte().numpy()
    picture = image_module.fromarray(array[..., 0] if channels == 1 else array)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    kept = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    box = image_module.Resampling.BOX
    expected = {
        "jpeg_compression": image_module.open(file),
        "pixelate": picture.resize((kept, kept), box).resize((32, 32), box),
    }
    for corruption, picture in expected.items():
        wanted = np.asarray(picture).reshape(32, 32, channels)
        found = bytes_of(corrupt(image, corruption, severity))[0].permute(1, 2, 0).numpy()
        assert (found == wanted).all()
        assert (found != array).any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_light_and_blur_are_scikit_images(severity: int) -> None:
    color = pytest.importorskip("skimage.color")
    filters = pytest.importorskip("skimage.filters")
    image = photograph()
    array = as_array(image)
    hsv = color.rgb2hsv(array)
    hsv[..., 2] = np.clip(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 0, 1)
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    mean = array.mean(axis=(0, 1), keepdims=True)
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    expected = {
        "brightness": color.hsv2rgb(hsv),
        "gaussian_blur": filters.gaussian(array, sigma=sigma, channel_axis=-1),
        "contrast": (array - mean) * factor + mean,
    }
    for corruption, wanted in expected.items():
        # One level: a value that is a whole number but for rounding may be cut off either way.
        difference = bytes_of(corrupt(image, corruption, severity)) - bytes_of(stored(wanted))
        assert difference.abs().max() <= 1
        assert (difference != 0).float().mean() < 0.01
        assert (corrupt(image, corruption, severity) != image).float().mean() > 0.3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_convolution_with_a_soft_disk(severity: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    radius, edge = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    x, y = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
    disk = (x**2 + y**2 <= radius**2).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * edge**2))
    soft = np.outer(taps, taps) / taps.sum() ** 2
    kernel = ndimage.convolve(disk / disk.sum(), soft, mode="constant")
    image = photograph()
    wanted = ndimage.correlate(as_array(image), kernel[..., None], mode="mirror")
    difference = bytes_of(corrupt(image, "defocus_blur", severity)) - bytes_of(stored(wanted))
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01


def test_black_pixels_become_grey_and_colours_keep_their_hue() -> None:
    image = torch.tensor([0.0, 0.0, 0.0, 0.6, 0.3, 0.0]).view(2, 3).T.reshape(1, 3, 1, 2)
    bright = corrupt(image, "brightness", 4)[0, :, 0]
    assert bytes_of(bright[:, 0]).tolist() == [51, 51, 51]  # 0.2
    assert bytes_of(bright[:, 1]).tolist() == [204, 102, 0]  # 0.8 at the same ratios


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_corruption(corruption: str) -> None:
    """Keeps shape and type, stays in range and bytes, gets worse, leaves its argument alone."""
    images = photograph(1, 28).repeat(3, 1, 1, 1)
    before = images.clone()
    changes = []
    for severity in SEVERITIES:
        changed = corrupt(images, corruption, severity)
        assert changed.shape == images.shape and changed.dtype == images.dtype
        assert changed.min() >= 0 and changed.max() <= 1
        torch.testing.assert_close(changed * 255, (changed * 255).round(), rtol=0, atol=1e-3)
        changes.append(float((changed - images).square().mean()))
    assert changes[0] > 0 and changes[4] > changes[0]
    assert torch.equal(images, before)


# -- accuracy ----------------------------------------------------------------------------------


class Mean(nn.Module):
    """Class 1 where the mean pixel is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        mean = (images * 0.5 + 0.5).flatten(1).mean(dim=1) * self.scale
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_accuracy_of_a_model_that_looks_at_the_mean() -> None:
    """Contrast leaves the mean (but for the rounding down), brightness lifts 0.4 above a half."""
    images = torch.cat([grey(0.4, 10), grey(0.6, 30)]).float()
    labels = torch.cat([torch.zeros(10), torch.ones(30)]).long()
    standard = (images - 0.5) / 0.5
    batches = list(zip(standard.split(7), labels.split(7), strict=True))
    seen: list[tuple[int, int | None]] = []
    found = corruption_accuracy(
        Mean(),
        batches,
        [0.5],
        [0.5],
        corruptions=("brightness", "contrast"),
        severities=(1, 3, 5),
        progress=lambda *now: seen.append(now),
    )
    assert found.clean == 1 and found.images == 40
    assert found.accuracies == {
        "brightness": {1: 1.0, 3: 0.75, 5: 0.75},
        "contrast": {1: 1.0, 3: 1.0, 5: 1.0},
    }
    assert found.means == pytest.approx({"brightness": 2.5 / 3, "contrast": 1.0})
    assert found.mean == pytest.approx((2.5 / 3 + 1) / 2)
    assert seen == [(i, 6) for i in range(1, 7)]


def test_branches_batches_and_nothing_left_behind() -> None:
    torch.manual_seed(0)
    model = perturb_norms(conadv.split_norms(conv_net()))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, labels = torch.rand(60, 3, 8, 8), torch.randint(0, 5, (60,))
    standard, stream = (images - 0.4) / 0.2, torch.get_rng_state()
    options = {"corruptions": ("gaussian_noise", "pixelate"), "severities": (5,)}

    def accuracy(size: int, branch: str):
        batches = list(zip(standard.split(size), labels.split(size), strict=True))
        return corruption_accuracy(model, batches, [0.4] * 3, [0.2] * 3, branch=branch, **options)  # type: ignore[arg-type]

    assert accuracy(60, "clean") == accuracy(7, "clean")
    assert accuracy(60, "clean") != accuracy(60, "adversarial")
    assert model.training and torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_arguments() -> None:
    image = photograph()
    with pytest.raises(ValueError, match="there are gaussian_noise"):
        corrupt(image, "frost", 1)
    with pytest.raises(ValueError, match="1 to 5"):
        corrupt(image, "contrast", 6)
    with pytest.raises(ValueError, match="not standardised"):
        corrupt(image * 3 - 1, "contrast", 1)
    with pytest.raises(ValueError, match="floats"):
        corrupt(image[0], "contrast", 1)
    with pytest.raises(ValueError, match="2 channels"):
        corrupt(image[:, :2], "jpeg_compression", 1)
    batches = [(image, torch.tensor([0]))]
    with pytest.raises(ValueError, match="at least one corruption"):
        corruption_accuracy(Mean(), batches, [0.0] * 3, [1.0] * 3, corruptions=())
    with pytest.raises(ValueError, match="no images"):
        corruption_accuracy(Mean(), [], [0.0] * 3, [1.0] * 3)

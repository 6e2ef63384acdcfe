"""Formulas of the corruptions: float64 images on [0, 1] in, the same out, before rounding."""

import io
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""``corruption(image (C, H, W), severity 1..5, generator)``."""


def _level(values: tuple[float, ...], severity: int) -> float:
    return values[severity - 1]


# -- noise -------------------------------------------------------------------------------------


def gaussian_noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Adds normal noise of a given standard deviation."""
    sigma = _level((0.04, 0.06, 0.08, 0.09, 0.10), severity)
    return image + sigma * _normal(image, generator)


def shot_noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Counts photons: Poisson with mean (photons * pixel), so variance pixel / photons."""
    photons = _level((500, 250, 100, 75, 50), severity)
    return torch.poisson(image * photons, generator=generator) / photons


def impulse_noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Salt and pepper: a share of the values becomes 1 or 0, at equal odds."""
    share = _level((0.01, 0.02, 0.03, 0.05, 0.07), severity)
    hit = torch.rand(image.shape, generator=generator, dtype=image.dtype) < share
    salt = torch.rand(image.shape, generator=generator, dtype=image.dtype) < 0.5
    return torch.where(hit, salt.to(image), image)


def speckle_noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Normal noise in proportion to the pixel."""
    sigma = _level((0.06, 0.1, 0.12, 0.16, 0.2), severity)
    return image + image * sigma * _normal(image, generator)


def _normal(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(image.shape, generator=generator, dtype=image.dtype)


# -- blur --------------------------------------------------------------------------------------


def gaussian_blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian filter, cut off at four standard deviations, the border repeated."""
    sigma = _level((0.4, 0.6, 0.7, 0.8, 1.0), severity)
    taps = _gaussian_taps(int(4 * sigma + 0.5), sigma)
    return _filter(image, torch.outer(taps, taps), "replicate")


def defocus_blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A disk of a given radius, its edge softened, the image mirrored at its border."""
    radius, edge = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    reach = torch.arange(-3, 4, dtype=torch.float64)
    disk = (reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2).double()
    soft = _gaussian_taps(1, edge)
    kernel = conv2d((disk / disk.sum())[None, None], torch.outer(soft, soft)[None, None], padding=1)
    return _filter(image, kernel[0, 0], "reflect")


def _gaussian_taps(reach: int, sigma: float) -> Tensor:
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-(at**2) / (2 * sigma**2))
    return taps / taps.sum()


def _filter(image: Tensor, kernel: Tensor, border: str) -> Tensor:
    reach = kernel.shape[0] // 2
    padded = pad(image[:, None], (reach,) * 4, mode=border)
    return conv2d(padded, kernel.to(image)[None, None])[:, 0]


# -- light, and what cameras and files do --------------------------------------------------------


def brightness(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Raises the value of HSV, which leaves hue and saturation: all channels scale with it."""
    more = _level((0.05, 0.1, 0.15, 0.2, 0.3), severity)
    value = image.amax(dim=0, keepdim=True)
    raised = (value + more).clamp(max=1)
    # A black pixel has no hue and no saturation: it becomes grey.
    return torch.where(value > 0, image * (raised / value.clamp(min=1e-12)), raised)


def contrast(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Pulls every channel towards its own mean."""
    kept = _level((0.75, 0.5, 0.4, 0.3, 0.15), severity)
    mean = image.mean(dim=(1, 2), keepdim=True)
    return (image - mean) * kept + mean


def pixelate(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shrinks with a box filter and enlarges again; rounds in between, as image files do."""
    kept = _level((0.95, 0.9, 0.85, 0.75, 0.65), severity)
    for sizes in ([max(1, int(n * kept)) for n in image.shape[1:]], image.shape[1:]):
        rows, columns = (_box(old, new) for old, new in zip(image.shape[1:], sizes, strict=True))
        # One axis after the other, rounded each time: what Pillow's resize(..., BOX) does.
        image = _to_bytes(image @ columns.T) / 255
        image = _to_bytes(rows @ image) / 255
    return image


def jpeg_compression(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """JPEG of a low quality; of one channel (grey) or three (RGB)."""
    from PIL import Image

    quality = int(_level((80, 65, 58, 50, 40), severity))
    if len(image) not in (1, 3):
        raise ValueError(
            f"jpeg_compression of {len(image)} channels: JPEG here takes 1 (grey) or 3 (RGB); "
            "leave it out."
        )
    shown = _to_bytes(image).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(shown[..., 0] if len(image) == 1 else shown).save(file, "JPEG", quality=quality)
    with Image.open(file) as stored:
        size, data = stored.size, stored.tobytes()
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return values.view(size[1], size[0], len(image)).permute(2, 0, 1).to(image) / 255


def _box(old: int, new: int) -> Tensor:
    """Weights (new, old) of Pillow's box filter: the mean of the pixels whose centre falls in."""
    scale = old / new
    support = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(old, dtype=torch.float64) + 0.5)[None, :] - centres[:, None]
    weights = ((distance > -support / 2) & (distance <= support / 2)).double()
    return weights / weights.sum(dim=1, keepdim=True)


def _to_bytes(image: Tensor) -> Tensor:
    # Halves go up, as Pillow's do; 1e-9 off a half is rounding of ours.
    return (image * 255 + 0.5 + 1e-9).floor().clamp(0, 255)

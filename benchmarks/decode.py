"""Images per second of our decoding against timm's training transform, one core each.

    pip install --no-deps foolbox scikit-image scikit-learn    # only for the photographs in them
    python benchmarks/decode.py --json benchmarks/results/decode-cpu.json

timm is as its own training script has it, with the prefetcher: Pillow, random resized crop, flip,
uint8 arrays, no colour jitter. Both see the same files from memory, in alternate rounds; the ratio
is taken round by round. `random` interpolation is the default of timm's script, `bilinear` that of
its loader and of ours. Evaluation (resize 256, crop 224) is compared in the same way.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from conadv.trainer.data.decoding import CentreCrop, Pipeline
from conadv.trainer.run import environment as machine

BAR = 1.3
CARRIERS = ("foolbox", "skimage", "sklearn")
"""Packages with photographs: ImageNet's in the first."""
SMALLEST = 200


def natural(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with the spectrum of photographs, amplitude 1 / frequency, and a few edges."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    shared = generator.standard_normal((height, width))
    layers = []
    for _ in range(3):
        # The channels of photographs are much alike.
        noise = shared + 0.35 * generator.standard_normal((height, width))
        layer = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(height, width))
        layers.append(layer / layer.std())
    picture = np.stack(layers, -1)
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(6):
        row, column = generator.uniform(0, height), generator.uniform(0, width)
        radius, shade = generator.uniform(20, 120), generator.normal(0, 0.8, 3)
        picture[(y - row) ** 2 + (x - column) ** 2 < radius**2] += shade
    return (127 + 50 * picture).clip(0, 255).astype(np.uint8)


def generated(count: int) -> list[bytes]:
    """JPEGs as ImageNet has them: 500 x 375 pixels or upright, quality 90."""
    files = []
    for number in range(count):
        shape = (500, 375) if number % 4 == 3 else (375, 500)
        file = io.BytesIO()
        Image.fromarray(natural(*shape, seed=number)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def photographs(folder: Path) -> list[bytes]:
    """JPEGs below a folder, without icons."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            data = path.read_bytes()
            if min(Image.open(io.BytesIO(data)).size) >= SMALLEST:
                files.append(data)
    return files


def image_sets(count: int, folders: list[Path]) -> dict[str, list[bytes]]:
    """Files by the name of the set."""
    sets = {"generated 500 x 375": generated(count)}
    carried: list[bytes] = []
    for name in CARRIERS:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            carried += photographs(Path(place))
    if carried:
        sets["photographs in packages"] = carried
    for folder in folders:
        sets[folder.name] = photographs(folder)
    return {name: files for name, files in sets.items() if files}


def timm_way(**options: Any) -> Callable[[bytes, int], Any]:
    """What timm's dataset and transform do to a file."""
    options = {"color_jitter": None, "use_prefetcher": True, **options}
    transform = create_transform(224, **options)
    return lambda data, place: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def our_way(prepare: Pipeline | CentreCrop) -> Callable[[bytes, int], Any]:
    """The same with ours."""
    return lambda data, place: prepare(data, 0, 0, place)


PAIRS = {
    "train, bilinear": (
        our_way(Pipeline(interpolation="bilinear")),
        timm_way(is_training=True, interpolation="bilinear"),
    ),
    "train, random": (
        our_way(Pipeline(interpolation="random")),
        timm_way(is_training=True, interpolation="random"),
    ),
    "evaluate, bilinear": (
        our_way(CentreCrop()),
        timm_way(is_training=False, interpolation="bilinear", crop_pct=0.875),
    ),
}


def seconds(way: Callable[[bytes, int], Any], files: list[bytes], start: int) -> float:
    """For all files once; `start` makes the crops those of another round."""
    begun = time.process_time()
    for place, data in enumerate(files, start):
        way(data, place)
    return time.process_time() - begun


def main() -> None:
    """Alternate the two, print the ratios, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders of JPEGs")
    parser.add_argument("--count", type=int, default=48, help="generated images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    missed = []
    for images, files in image_sets(options.count, options.images).items():
        pixels = [np.prod(Image.open(io.BytesIO(data)).size) for data in files]
        for kind, (ours, theirs) in PAIRS.items():
            seconds(ours, files, 0), seconds(theirs, files, 0)
            rates: dict[str, list[float]] = {"conadv": [], "timm": []}
            for number in range(options.rounds):
                for name, way in (("conadv", ours), ("timm", theirs)):
                    spent = seconds(way, files, number * len(files))
                    rates[name].append(len(files) / spent)
            ratio = machine.spread([a / b for a, b in zip(*rates.values(), strict=True)])
            row = {
                "images": images,
                "number": len(files),
                "mean_kilobytes": round(sum(map(len, files)) / len(files) / 1000, 1),
                "mean_megapixels": round(float(np.mean(pixels)) / 1e6, 3),
                "what": kind,
                "ratio": ratio,
                "goal": BAR if kind.startswith("train") else None,
                **{f"{k}_images_per_second": machine.spread(v) for k, v in rates.items()},
            }
            rows.append(row)
            middle = {name: machine.spread(values)["median"] for name, values in rates.items()}
            print(
                f"{images} ({len(files)}), {kind}: ours {middle['conadv']:.0f}/s, timm "
                f"{middle['timm']:.0f}/s, x{ratio['median']:.2f} "
                f"({ratio['p10']:.2f} to {ratio['p90']:.2f})",
                flush=True,
            )
            if row["goal"] and ratio["median"] < BAR:
                missed.append(f"{images}, {kind}")
    if options.json:
        packages = {name: version(name) for name in ("pillow", "torchvision")}
        content = {
            "rows": rows,
            "rounds": options.rounds,
            "environment": {**machine.environment(), "threads": 1, **packages},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    print("bar met" if not missed else f"bar MISSED by {'; '.join(missed)}")


if __name__ == "__main__":
    main()

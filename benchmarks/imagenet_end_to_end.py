"""An ImageNet recipe from JPEG files to `result.json` at its real global batch, without ImageNet.

    python benchmarks/imagenet_end_to_end.py --size 32 --steps 20 \
        --json benchmarks/results/imagenet-end-to-end-cpu.json
    python benchmarks/imagenet_end_to_end.py --device cuda --size 224     # on a GPU

Everything is as in the recipe (network, global batch, normalisation groups, schedule, augmentation,
decoding from files) but for the images, which are made up, their size, and the length. The learning
rates are those of the first steps of the whole run. Interrupted, the same command goes on where it
was. Reports images per second, and the peak memory of the process that trains.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run import environment as machine

CLASSES = 1000
TRAIN_IMAGES = 1_281_167


def jpeg(size: int, number: int) -> bytes:
    """A coarse random picture, a quarter larger than the network's images."""
    numbers = np.random.default_rng(number)
    coarse = numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    shape = (size * 5 // 3, size * 5 // 4)
    Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_images(root: Path, size: int, count: int) -> None:
    """A folder per class and split, as ImageNet's; kept, and finished where it was left."""
    done = root / f"complete-{size}-{count}"
    if done.exists():
        return
    for split, images, first in (("train", count, 0), ("val", CLASSES, count)):
        for number in range(images):
            place = root / split / f"class{number % CLASSES:04d}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.with_suffix(".part").write_bytes(jpeg(size, first + number))
                place.with_suffix(".part").rename(place)
            if number % 5000 == 0:
                print(f"images of {split}: {number:,} of {images:,}", flush=True)
    done.touch()


def overrides(recipe: Recipe, root: Path, images: int, options: argparse.Namespace) -> list[str]:
    """The recipe, shortened."""
    batch, steps = recipe.batch.global_batch, options.steps
    fresh = recipe.fresh_per_micro_batch * recipe.micro_steps
    warmup = recipe.lr_schedule.warmup_epochs * TRAIN_IMAGES / fresh
    # The first steps of a rise over so many: it ends later, so its part is a lower, shorter rise.
    rate = recipe.optimizer.lr * min(1.0, steps / warmup) if warmup else recipe.optimizer.lr
    changed = [
        f"data.root={root}",
        "data.validation=0",
        f"data.files.size={options.size}",
        f"data.files.eval_size={options.size}",
        f"data.files.eval_resize={options.size * 8 // 7}",
        f"train.steps={steps}",
        f"lr_schedule.warmup_epochs={min(warmup, steps) * fresh / images}",
        f"optimizer.lr={rate}",
        "evaluation.every_epochs=1000",
        "evaluation.robust_images=100",
        "checkpoint.every_minutes=5",
        f"hardware.device={options.device}",
    ]
    if options.micro_batch:
        if batch % options.micro_batch:
            raise SystemExit(f"--micro-batch {options.micro_batch} does not divide {batch}")
        changed.append(f"batch.micro_batch={options.micro_batch}")
    return changed


def peak_bytes(process: int) -> int:
    """Largest resident size so far of a living process; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def train(recipe: str, changed: list[str], out: Path) -> None:
    """Run `conadv train`, or go on with it; the peak of its memory is kept beside it."""
    command = [sys.executable, "-m", "conadv", "train", recipe, *changed, "--out", str(out)]
    if out.exists():
        command.append("--resume")
    kept = out.with_suffix(".peak")
    peak = int(kept.read_text()) if kept.exists() else 0
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            kept.write_text(str(peak))
            time.sleep(1)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if process.returncode:
        raise SystemExit(process.returncode)


def finished(out: Path) -> bool:
    """Whether a run came to its end; one that was interrupted has a result, too."""
    found = out / "result.json"
    return found.exists() and json.loads(found.read_text())["status"] == "finished"


def measured(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run, and what its folder says."""
    plan = load_recipe(recipe)
    images = max(options.images, plan.batch.global_batch)
    root = options.folder / f"jpegs-{options.size}"
    write_images(root, options.size, images)
    out = options.folder / f"{plan.name}-{options.size}"
    if not finished(out):
        train(recipe, overrides(plan, root, images, options), out)
    result = json.loads((out / "result.json").read_text())
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == options.steps
    timing = [json.loads(x) for x in (out / "timing.jsonl").read_text().splitlines()]
    seconds = result["step_seconds_median"]
    return {
        "recipe": plan.name,
        "size": options.size,
        "global_batch": result["global_batch"],
        "steps": result["steps"],
        "images_seen": result["images_seen"],
        "compute": result["compute"],
        "step_seconds": [line["seconds"] for line in timing],
        "step_seconds_median": seconds,
        "images_per_second": result["global_batch"] / seconds,
        "peak_bytes": int(out.with_suffix(".peak").read_text()) or None,
        "losses": [line["loss"] for line in steps],
        "learning_rates": [line["learning_rate"] for line in steps],
        "test_accuracy": result["test_accuracy"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Make images, train, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="*", default=["imagenet-resnet50-recycled-32k"])
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=40_000, help="at least one step's")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("runs/imagenet-end-to-end"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("CONADV_DATA", str(options.folder.resolve() / "cache"))
    rows = []
    for recipe in options.recipes:
        row = measured(recipe, options)
        rows.append(row)
        losses = row["losses"]
        print(
            f"{row['recipe']} at {options.size} px: {row['steps']} steps of "
            f"{row['global_batch']:,}, {row['images_per_second']:.0f} images/s, loss "
            f"{losses[0]:.3f} to {losses[-1]:.3f}, "
            f"peak {(row['peak_bytes'] or 0) / 2**30:.2f} GiB"
        )
    if options.json:
        found = {"environment": machine.environment(options.device), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Images per second of `conadv train` against timm's own training script, both vanilla.

    git clone https://github.com/huggingface/pytorch-image-models
    python benchmarks/train_vs_timm.py --timm-script pytorch-image-models/train.py \
        --json benchmarks/results/train-vs-timm-cpu.json

Same model, batch, precision and images (CIFAR-10), on the same machine; runs alternate, and the
ratio is taken round by round. Both trainers' rates are medians over steps, start-up excluded.
`conadv train` crops and flips. timm runs twice: with its own random crop and flip (colour jitter
off, which ours has not), which the goal is about, and with no augmentation at all, which is as
quick as it gets. It has channels_last, which is quicker here, and no mixing.

Processor time (user and system, loader processes included) stands beside it, for machines that are
shared: each run is made once more with half of the images, and what the longer one takes more
is what images cost, start-up excluded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _result import load, processor_seconds, write_result

from conadv.trainer.data import load_dataset
from conadv.trainer.run import environment as machine

BARS = {"cifar/resnet18": 1.15, "cifar/resnet20": 1.3}
SKIP = 3
"""Steps at the start of a run that are not counted: workers start, kernels are chosen."""
RUNNER = Path(__file__).with_name("_timm_runner.py")


def write_cifar(folder: Path, images: int, test: int) -> None:
    """The first images in the layout that torchvision's CIFAR10 reads, so timm decodes nothing."""
    data = load_dataset("cifar10")
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)

    def batch(name: str, pixels: Any, labels: Any) -> None:
        content = {"data": pixels.flatten(1).numpy(), "labels": labels.tolist()}
        (target / name).write_bytes(pickle.dumps(content))

    part = images // 5
    for i in range(5):
        rows = slice(i * part, (i + 1) * part)
        batch(f"data_batch_{i + 1}", data.train_images[rows], data.train_labels[rows])
    batch("test_batch", data.test_images[:test], data.test_labels[:test])
    meta = {"label_names": list(data.classes)}
    (target / "batches.meta").write_bytes(pickle.dumps(meta))


AUGMENTATION = {
    "crop and flip": ("--color-jitter", "0", "--hflip", "0.5"),
    "none": ("--no-aug",),
}
"""What timm does to its images, and the options that say so."""


def timm_rate(
    script: Path, folder: Path, model: str, batch: int, workers: int, augmentation: str
) -> float:
    """Images per second of timm's script: median over its logged steps."""
    with tempfile.TemporaryDirectory() as output:
        command = [
            *(sys.executable, str(RUNNER), str(script)),
            *("--dataset", "torch/cifar10", "--data-dir", str(folder)),
            *("--model", "conadv_" + model.split("/")[1], "--num-classes", "10"),
            *("--input-size", "3", "32", "32", "--batch-size", str(batch)),
            *("--mean", "0.4914", "0.4822", "0.4465", "--std", "0.247", "0.2435", "0.2616"),
            *("--opt", "sgd", "--lr", "0.1", "--momentum", "0.9", "--sched", "cosine"),
            *("--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0"),
            *("--amp", "--amp-dtype", "bfloat16", "--device", "cpu", "--channels-last"),
            *("--workers", str(workers), "--log-interval", "1", "--output", output),
            *AUGMENTATION[augmentation],
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    rates = [float(r) for r in re.findall(r"Time: [\d.]+s, +([\d.]+)/s", log)]
    if done.returncode != 0 or len(rates) <= SKIP:
        raise SystemExit(f"timm's script failed:\n{log[-3000:]}")
    return statistics.median(rates[SKIP:])


def conadv_rate(model: str, batch: int, images: int) -> float:
    """Images per second of our trainer: median over the steps in its run folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "conadv", "train", "cifar10-resnet18-small-batch"),
            *("--out", str(out), f"model.name={model}", "optimizer.name=sgd", "optimizer.lr=0.1"),
            *(f"batch.global_batch={batch}", f"batch.micro_batch={batch}", "batch.norm_group=null"),
            *(f"data.train_images={images}", "data.validation=0", "train.epochs=1"),
            *("lr_schedule.warmup_epochs=0", "evaluation.robust_images=64"),
            "hardware.precision=bf16",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"conadv train failed:\n{(done.stdout + done.stderr)[-3000:]}")
        lines = (out / "timing.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if '"seconds"' in line]
    return batch / statistics.median(seconds[SKIP:])


def costed(run: Callable[[int], float], images: int) -> tuple[float, float]:
    """Images per second of a run, and processor seconds that an image costs."""
    began = processor_seconds()
    rate = run(images)
    middle = processor_seconds()
    run(images // 2)
    longer, shorter = middle - began, processor_seconds() - middle
    return rate, (longer - shorter) / (images - images // 2)


def measure(model: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both trainers in turn; a row for each augmentation of timm's."""

    def ours(images: int) -> float:
        return conadv_rate(model, options.batch, images)

    def theirs(name: str) -> Callable[[int], float]:
        script, batch, workers = options.timm_script, options.batch, options.workers
        return lambda images: timm_rate(script, folder / str(images), model, batch, workers, name)

    runs = {"conadv": ours, **{name: theirs(name) for name in AUGMENTATION}}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for pair in range(options.pairs):
        for name, run in runs.items():
            found[name].append(costed(run, options.images))
            rate, seconds = found[name][-1]
            shown = f"{rate:.1f} images/s, {1e3 * seconds:.2f} ms of processor time an image"
            print(f"{model} round {pair + 1}, {name}: {shown}", flush=True)
    rows = []
    for name in AUGMENTATION:
        pairs = list(zip(found["conadv"], found[name], strict=True))
        ratio = machine.spread([own[0] / other[0] for own, other in pairs])
        processor = machine.spread([other[1] / own[1] for own, other in pairs])
        print(
            f"{model}, timm with augmentation {name}: x{ratio['median']:.2f}, by processor time "
            f"x{processor['median']:.2f}",
            flush=True,
        )
        rows.append(
            {
                "model": model,
                "batch": options.batch,
                "timm_augmentation": name,
                "ratio": ratio,
                "processor_ratio": processor,
                "goal": BARS.get(model) if name != "none" else None,
                "conadv_images_per_second": [rate for rate, _ in found["conadv"]],
                "timm_images_per_second": [rate for rate, _ in found[name]],
                "conadv_processor_seconds": [seconds for _, seconds in found["conadv"]],
                "timm_processor_seconds": [seconds for _, seconds in found[name]],
            }
        )
    return rows


def main() -> None:
    """Alternate the two, print the ratios, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm-script", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(BARS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=2560, help="trained on in each run")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="timm's loader processes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        for images in (options.images, options.images // 2):
            write_cifar(Path(folder) / str(images), images, test=128)
        for model in options.models:
            rows += measure(model, Path(folder), options)
    script = hashlib.sha256(options.timm_script.read_bytes()).hexdigest()
    write_result(options.json, {"rows": rows, "timm_script_sha256": script}, before)


if __name__ == "__main__":
    main()

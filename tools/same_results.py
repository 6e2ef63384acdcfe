"""Shows that a refactoring changes no result: short runs of every method, compared bit for bit.

    python tools/same_results.py before.json                     # on the commit before
    python tools/same_results.py after.json --against before.json   # on the commit after

Each case is trained by the real command, on one process and on two, in fp32 with one thread, and
what it leaves is reduced to a digest: the exported weights, every number of ``metrics.jsonl`` that
is no time, and the accuracies of ``result.json``. The two files have to come from one machine
and one version of torch. The exit code is 1 where a digest differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CASES: dict[str, list[str]] = {
    "vanilla": ["method.schedule=vanilla"],
    "sequential": ["method.schedule=sequential", "attack.random_start=0.8"],
    "sequential-l2": ["method.schedule=sequential", "attack.norm=l2", "attack.epsilon=0.5"],
    "lookahead": ["method.schedule=lookahead"],
    "lookahead-tau3": ["method.schedule=lookahead", "method.tau=3", "attack.target=random"],
    "recycled": ["method.schedule=recycled"],
    "recycled-budget": ["method.schedule=recycled", "method.budget=fixed"],
    "recycled-refine": ["method.schedule=recycled", "method.refine=2", "method.weight=0.3"],
    "noise": ["method.schedule=noise", "method.share=[[0,0.5],[1,1]]"],
    "affine": ["method.schedule=sequential", "norm.statistics=affine"],
    "lamb": ["method.schedule=recycled", "optimizer.name=lamb", "optimizer.lr=0.01"],
    "muon": ["method.schedule=recycled", "optimizer.name=muon", "optimizer.lr=0.01"],
    "adamw-clip-ema": [
        "method.schedule=lookahead",
        "optimizer.name=adamw",
        "optimizer.lr=0.001",
        "train.clip_grad_norm=1",
        "train.ema_decay=0.9",
    ],
    "sam": ["method.schedule=vanilla", "method.sam=sam"],
    "async-sam": ["method.schedule=vanilla", "method.sam=async"],
    "vr-lars": ["method.schedule=vanilla", "optimizer.variance_reduction=true"],
    "mixup": ["method.schedule=recycled", "train.mixup=0.2", "train.cutmix=0.5"],
    "weights-sequential": ["method.schedule=vanilla", "weights.schedule=sequential"],
    "weights-recycled": ["method.schedule=vanilla", "weights.schedule=recycled"],
    "weights-lookahead": ["method.schedule=vanilla", "weights.schedule=lookahead"],
    "weights-and-images": ["method.schedule=recycled", "weights.schedule=recycled"],
}
SHORT = ["train.steps=12", "lr_schedule.warmup_epochs=0.5", "evaluation.every_epochs=1000"]
RECIPES = {
    f"quickstart-{name}": f"fashion-resnet8-{name}"
    for name in ("small-batch", "vanilla", "sequential", "recycled")
}
"""Recipes of the quickstart as it was, cut short; all other cases follow the recipe ``smoke``."""
CASES |= {name: SHORT for name in RECIPES}
AUGMENTED = ["data.flip=true", "data.crop_padding=2", "data.order_tail=wrap"]
COMMON = [
    "hardware.precision=fp32",
    "hardware.device=cpu",
    "hardware.threads=1",
]
ALONE = {"affine", *RECIPES}
"""Cases that one process alone can train, on the oldest commit that this may be run on."""
TIMES = ("seconds", "images_per_second", "time", "rate", "step_ms", "wall")


def main() -> int:
    """Write the digests, and compare them with those of another commit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file of digests")
    parser.add_argument("--against", type=Path, help="digests to compare with")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    options = parser.parse_args()
    wanted = [
        (name, ranks)
        for ranks in options.ranks
        for name in options.only
        if ranks == 1 or name not in ALONE
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        digests = {}
        for name, found in pool.map(lambda case: digest(Path(folder), *case), wanted):
            digests[name] = found
            options.out.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text())
    differing = [
        f"{case}: {part}"
        for case in digests
        if case in before
        for part, value in before[case].items()
        if digests[case].get(part) != value
    ]
    compared = [case for case in digests if case in before]
    print(f"{len(compared)} runs compared: {'all equal' if not differing else 'NOT EQUAL'}")
    print("".join(f"  {line}\n" for line in differing), end="")
    return 1 if differing or not compared else 0


def digest(folder: Path, name: str, ranks: int) -> tuple[str, dict[str, Any]]:
    """Train one case: digests of its weights and of each kind of metrics, numbers of its result.

    What a later commit adds to metrics or results has a name of its own, so it changes nothing.
    """
    run = folder / f"{name}-{ranks}"
    devices = ["--devices", str(ranks)] if ranks > 1 else []
    recipe, own = RECIPES.get(name, "smoke"), [] if name in RECIPES else AUGMENTED
    _conadv("train", recipe, *CASES[name], *own, *COMMON, "--out", str(run), *devices)
    weights = folder / f"{name}-{ranks}.safetensors"
    _conadv("export", str(run), str(weights))
    columns: dict[str, list[Any]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        for key, value in _numbers(json.loads(line)).items():
            columns.setdefault(key, []).append(value)
    result = _numbers(json.loads((run / "result.json").read_text()))
    return f"{name} x{ranks}", {
        "weights": _tensors(weights),
        **{f"metrics.{key}": _sha(json.dumps(values).encode()) for key, values in columns.items()},
        **{f"result.{key}": value for key, value in result.items()},
    }


def _conadv(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conadv", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"conadv {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line is a number and no time."""
    return {
        key: value
        for key, value in line.items()
        if isinstance(value, int | float) and not any(word in key for word in TIMES)
    }


def _tensors(path: Path) -> str:
    from safetensors.numpy import load_file

    tensors = load_file(path)
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].tobytes())
    return sha.hexdigest()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

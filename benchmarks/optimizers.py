"""Cost of a step of LARS and LAMB against timm's multi-tensor ones; the bars of docs/benchmarks.md.

    python benchmarks/optimizers.py --json benchmarks/results/optimizers-cpu.json

The same as `conadv bench optimizers`, with the bars checked at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from conadv.lab.bench import optimizers

FOREACH, FUSED_ON_CPU = 1.0, 0.6
"""Largest medians of the time over timm's."""
COPY_SHARE_ON_GPU = 0.5
"""A fused step takes at most twice the time that moving its bytes takes."""


def main() -> None:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="timm/resnet50")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = optimizers.run(
        options.model,
        options.device,
        options.dtype,
        options.repeats,
        on_progress=lambda line: print(line, flush=True),
    )
    missed = []
    for row in result["rows"]:
        name = f"{row['optimizer']} {row['implementation']}"
        ratio = row["step_ratio"]
        print(
            f"{name:13} x{ratio['median']:.3f} (p10 {ratio['p10']:.3f}, p90 {ratio['p90']:.3f})  "
            f"{1000 * row['step_seconds_median']:.1f} ms  memory x{row['memory_ratio']:.3f}  "
            f"{row['copy_share']:.2f} of a copy",
            flush=True,
        )
        fused, on_cpu = row["implementation"] == "fused", options.device == "cpu"
        slow = ratio["median"] > (FUSED_ON_CPU if fused and on_cpu else FOREACH)
        if slow or (fused and not on_cpu and row["copy_share"] < COPY_SHARE_ON_GPU):
            missed.append(name)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("bars met" if not missed else f"bars MISSED by {', '.join(missed)}")


if __name__ == "__main__":
    main()

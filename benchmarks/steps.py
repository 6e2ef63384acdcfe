"""Cost of a step of every schedule against vanilla; the bars of docs/benchmarks.md.

    python benchmarks/steps.py --json benchmarks/results/steps-cpu.json

The same as `conadv bench steps`, with the bars checked at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from conadv.lab.bench import steps

FLOPS = {"sequential": 2.70, "lookahead": 2.70, "recycled": 2.02, "recycled-budget": 1.02}
STEP = {"sequential": 2.80, "lookahead": 2.80, "recycled": 2.10, "recycled-budget": 1.06}


def main() -> None:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar/resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = steps.run(
        options.model,
        options.batch,
        options.device,
        options.dtype,
        repeats=options.repeats,
        on_progress=lambda line: print(line, flush=True),
    )
    missed = []
    for row in result["rows"]:
        name, median = row["schedule"], row["step_ratio"]["median"]
        print(f"{name:16} FLOPs x{row['flops_ratio']:.3f}  step x{median:.3f}", flush=True)
        if row["flops_ratio"] > FLOPS.get(name, 9) or median > STEP.get(name, 9):
            missed.append(name)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("bars met" if not missed else f"bars MISSED by {', '.join(missed)}")


if __name__ == "__main__":
    main()

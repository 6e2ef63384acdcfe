#!/usr/bin/env bash
# The study evidence-gpu within a time limit, on one GPU; what is left over is made by the next call.
#
#     tools/gpu_evidence.sh runs/evidence-gpu 540              # seconds
#     tools/gpu_evidence.sh runs/tiny 120 tiny.yaml            # another study, such as one for a CPU
#
# PYTHON names the interpreter that has conadv.
set -euo pipefail
python=${PYTHON:-python3} out=${1:?folder of the study} seconds=${2:-540} study=${3:-evidence-gpu}
# SIGINT lets the run at hand write a checkpoint; the tables are those of the runs that have ended.
timeout --signal=INT --kill-after=30 "$seconds" "$python" -m conadv study "$study" --out "$out" --workers 1 ||
    echo "stopped: the same command goes on where it was" >&2
"$python" -m conadv study "$out" --status

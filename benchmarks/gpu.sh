#!/usr/bin/env bash
# Everything that a graphics card is wanted for, in at most 8 minutes: does it compute the same, how fast are networks,
# a large CT from file to mask and a training step, how much memory do they need, what does Teach reach in 5 minutes.
#
#   bash benchmarks/gpu.sh [DEVICE] [FOLDER]            on a card: cuda, benchmarks/results/gpu
#   TINY=1 bash benchmarks/gpu.sh cpu FOLDER            that every part runs, in two minutes without a card
#
# PYTHON names the interpreter. Every part writes its results when it ends, and one that fails stops no other.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=${1:-cuda} folder=${2:-benchmarks/results/gpu} python=${PYTHON:-python3} failed=0
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
mkdir -p "$folder"

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2 start=$SECONDS
    shift 2
    if timeout "$seconds" "$@"; then
        echo "$name: done in $((SECONDS - start)) s"
    else
        echo "$name: FAILED or not done in $seconds s"
        failed=1
    fi
}

networks=(--rounds 5 --only snet attnnet edgenet fmunet efficientsegnet pctnet)
ct=(--rounds 2 --models efficient-phantom-ct fmsf-phantom-ct)
steps=(--rounds 2 --steps 50) minutes=4.5
if [[ -n ${TINY:-} ]]; then
    networks=(--rounds 1 --only edgenet --size 16 --small)
    ct=(--rounds 1 --models fmsf-phantom-ct --shape 40 48 48)
    steps=(--rounds 1 --steps 3 --cases 1 --spacing 20) minutes=0.1
fi
part equality 45 "$python" -m pytest -q -m gpu tests/nets tests/pipelines/test_sliding_window.py
part networks 60 "$python" -m benchmarks networks --device "$device" "${networks[@]}" --out "$folder/networks.json"
part "file to mask" 45 "$python" -m benchmarks file_to_mask --device "$device" "${ct[@]}" --out "$folder/file_to_mask.json"
part "training step" 20 "$python" -m benchmarks training_step --device "$device" "${steps[@]}" --out "$folder/training_step.json"
part Teach 310 "$python" -m benchmarks learning phantoms --device "$device" --minutes $minutes --seeds 1 --threads 4 \
    --work "$folder/teach" --out "$folder/learning.json"
exit $failed

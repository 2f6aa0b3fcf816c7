#!/bin/sh
# emo.sh OUT CORPUS FOLDER [DEVICE [STEPS [SEEDS]]] - a growing pool against a fixed one, at equal tokens: `plan emo` with measured step times, then
# for each seed run emo and run full, the rate rising for as many steps at first; losses on the held-out documents and the seconds of all
# steps, from metrics.jsonl. On a GPU: 8 layers of 512, 8 to 64 experts of 384, top-8; else 4 layers of 128, 2 to 16 experts of 256, top-2.
# Python reads the metrics.
set -eu
out=${1:?the build, or a folder of gpu-pack} corpus=${2:?a corpus PREFIX} work=${3:?a folder for the runs}
device=${4:-cpu} steps=${5:-500} seeds=${6:-1 2 3}
moedisco=$out/moedisco
case $device in
cpu*) grow=2,4,8,16 last=16 sizes='--hidden 128 --layers 4 --heads 4 --expert-width 256 --context-length 256 --top-k 2 --length 256 --rows 16'
      warmup=10 tokens=4096 rate=1.5e-3
      within='' balance='--balance-rate 0.03' ;;
*) grow=8,16,32,64 last=64 sizes='--hidden 512 --layers 8 --heads 8 --expert-width 384 --context-length 256 --top-k 8 --length 256 --rows 256'
   warmup=40 tokens=65536 rate=1e-3
   within='--micro-batches 4 --balance-each micro-batch' balance='--balance-rate 0.1' ;;
esac
model="--corpus $corpus --family dots1 $sizes $within --device $device"
balance="--load-balance 0 $balance --balance-boost 1 --balance-band 1"
train="--learning-rate $rate $balance --checkpoint-every 0 --held-out 0.02 --steps $steps --quiet"
mkdir -p "$work"
# shellcheck disable=SC2086
"$moedisco" plan emo $model --grow $grow --rule law --all-tokens $((steps * tokens)) --measure 3
for seed in $seeds; do
    # shellcheck disable=SC2086
    "$moedisco" run emo "$work/$seed" $model $train --grow $grow --rule law --stage-warmup $warmup --seed "$seed" > "$work/$seed.log" 2>&1
    # shellcheck disable=SC2086
    "$moedisco" run full "$work/$seed" $model $train --experts $last --schedule wsd \
        --warmup "$(awk "BEGIN { print $warmup / $steps }")" --decay 0.1 --seed "$seed" >> "$work/$seed.log" 2>&1
done
python3 - "$work" $warmup $seeds <<'END'
import glob, json, sys
from statistics import mean, median

def steps(folder):
    files = sorted(glob.glob(folder + "/stages/*/metrics.jsonl"), key=lambda f: int(f.split("/")[-2])) + [folder + "/metrics.jsonl"]
    return [[s for s in map(json.loads, open(f)) if "tokens_per_second" in s] for f in files]

def loss(folder):
    return json.load(open(folder + "/result.json"))["held_out_loss"]

gaps, saved = [], []
warmup = int(sys.argv[2])
for seed in sys.argv[3:]:
    emo, full = (sys.argv[1] + "/" + seed + "/" + kind for kind in ("emo", "full"))
    grown, fixed = steps(emo), steps(full)
    seconds = [sum(s["seconds"] for stage in run for s in stage) for run in (grown, fixed)]
    gaps.append(loss(emo) / loss(full) - 1), saved.append(1 - seconds[0] / seconds[1])
    print(f"seed {seed}: loss {loss(emo):.4f}, fixed {loss(full):.4f} ({gaps[-1]:+.2%}); {seconds[0]:.2f} s, fixed {seconds[1]:.2f} ({saved[-1]:.1%} saved)")
    before = None
    for stage in grown:
        loads = [max(s["loads"]["max"]) for s in stage[warmup:] or stage]
        healed = next((i for i, s in enumerate(stage) if before and s["loss"] <= before), None)
        print(f"    {len(stage)} steps, {1000 * median(s['seconds'] for s in stage):.1f} ms; largest load after {warmup}: {max(loads):.2f}, mean {mean(loads):.2f}, "
              f"last {loads[-1]:.2f}, smallest then {min(stage[-1]['loads']['min']):.2f}; loss before {before or 0:.3f}, healed after {healed}")
        before = mean(s["loss"] for s in stage[-5:])
print(f"mean: loss {mean(gaps):+.2%}, {mean(saved):.1%} saved")
END

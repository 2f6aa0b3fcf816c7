#!/bin/sh
# methods.sh MOEDISCO: disco without and with a common start, upcycle and full at equal money, three seeds, demo scale: mean and
# spread of the held-out loss. SEEDS ("1 2 3") and MONEY (6e-6 dollars a run, on the priced devices) say how much is done, so that
# another machine does the same: about four minutes a seed on two cores. WORK (bench-run) is where it lies; finished runs are kept.
set -u
moedisco=$1
seeds=${SEEDS:-1 2 3}
money=${MONEY:-6e-6}
work=${WORK:-bench-run}
LC_ALL=C
export LC_ALL
mkdir -p "$work" || exit 1
if [ ! -e "$work/text.idx" ]; then
    DEMO_TEXT_ONLY=1 DEMO_WORK=$work sh "$(dirname "$0")/../../examples/demo.sh" "$moedisco" > "$work/log" || exit 1
    "$moedisco" corpus build "$work/text" "$work/text" > "$work/log" || exit 1
fi
run() { # seed kind name flags...
    seed=$1 kind=$2 name=$3
    shift 3
    echo "seed $seed: $name" >&2
    "$moedisco" run "$kind" "$work/$seed" --name "$name" --corpus "$work/text" --seed "$seed" "$@" > "$work/log" || exit 1
}
for seed in $seeds; do
    run "$seed" disco disco --money "$money"
    run "$seed" disco disco-start --money "$money" --start-share 0.2 --branch-share 0.3
    run "$seed" upcycle upcycle --money "$money"
    run "$seed" full full --money "$money"
done
for seed in $seeds; do "$moedisco" info "$work/$seed" --json; done | grep '"event":"result"' |
    sed 's/.*"held_out_loss":\([^,]*\),.*"cost":{"money":\([^,]*\),"flops":\([^,]*\),"hours":[^,]*,"device_hours":[^,]*,"seconds_here":\([^,}]*\)}.*"pipeline":"\([^"]*\)".*/\5 \1 \2 \3 \4/' |
    awk '{ n[$1]++; sum[$1] += $2; square[$1] += $2 * $2; money[$1] += $3; flops[$1] += $4; here[$1] += $5
           if (n[$1] == 1 || $2 < low[$1]) low[$1] = $2
           if (n[$1] == 1 || $2 > high[$1]) high[$1] = $2 }
         END { printf "%-14s %5s %9s %9s %19s %12s %12s %10s\n", "pipeline", "seeds", "mean", "std", "held-out loss, range", "money", "FLOP", "seconds"
               for (p in n) { m = sum[p] / n[p]; v = n[p] > 1 ? (square[p] - n[p] * m * m) / (n[p] - 1) : 0
                   printf "%-14s %5d %9.4f %9.4f  %8.4f - %8.4f  $%10.3g %12.3g %10.1f\n", p, n[p], m, sqrt(v > 0 ? v : 0), low[p], high[p],
                       money[p] / n[p], flops[p] / n[p], here[p] / n[p] | "sort" } }'

#!/bin/sh
# methods.sh MOEDISCO: the methods against each other: mean, spread and cost of the held-out loss. SCALE says how large:
#   demo   (the default) the demo's text and model, disco without and with a common start, upcycle and full at equal MONEY (6e-6 dollars a
#          run on the priced devices): about four minutes a seed on two cores
#   pilot  38.2M parameters, batches of 64 x 512, the steps of every way given; needs CORPUS (a prefix, tests/peers/bpe_corpus.py) and a GPU
#   toy    the pilot's rows with a tiny model and a fiftieth of its steps: whether all of it runs
# SEEDS ("1 2 3"; none: only the table), ROWS (all; of rows that go together the first), DEVICE (auto), and JOBS (1), rows side by side, say
# how much is done and how. WORK (bench-run) is where it lies. Finished runs are kept, their models are not, so the same command goes on.
set -u
LC_ALL=C
export LC_ALL
moedisco=$1
scale=${SCALE:-demo}
work=${WORK:-bench-run}
here=$(dirname "$0")
fault() { echo "methods: $*" >&2; exit 1; }

# A row: name, kind, what it has in common with the row it begins with (- for the first of its group, started: start and clusters,
# integrated: all but the F-phase), flags. Each way the most telling rows come first.
demo_rows() {
    money=${MONEY:-6e-6}
    cat << END
disco - disco --money $money
disco-start - disco --money $money --start-share 0.2 --branch-share 0.3
upcycle - upcycle --money $money
full - full --money $money
END
}
pilot_rows() { # steps are divided by $1
    s() { echo $(($1 / divisor)); }
    divisor=$1
    cat << END
disco-300 - disco --start-steps 0 --branch-steps $(s 300) --steps $(s 300)
disco-100 integrated disco --start-steps 0 --branch-steps $(s 300) --steps $(s 100)
upcycle-300 - upcycle --start-steps $(s 1200) --steps $(s 300)
upcycle-100 started upcycle --start-steps $(s 1200) --steps $(s 100)
full-500 - full --steps $(s 500)
start-600 - disco --start-steps $(s 600) --branch-steps $(s 150) --steps $(s 300)
start-600-frozen started disco --start-steps $(s 600) --branch-steps $(s 150) --steps $(s 300) --branch-freeze shared
random - disco --start-steps 0 --branch-steps $(s 300) --steps $(s 300)
start-100 - disco --start-steps $(s 100) --branch-steps $(s 275) --steps $(s 300)
disco-long - disco --start-steps 0 --branch-steps $(s 600) --steps $(s 300)
full-400 - full --steps $(s 400)
full-750 - full --steps $(s 750)
full-1500 - full --steps $(s 1500)
END
}
case $scale in
demo) corpus=$work/text flags='' ;;
toy | pilot)
    corpus=${CORPUS:?the prefix of a corpus, made by tests/peers/bpe_corpus.py}
    flags='--held-out 0.02 --no-document-mask --checkpoint-every 0' ;;
*) fault "SCALE $scale is none of demo, pilot, toy" ;;
esac
case $scale in
demo) rows=$(demo_rows) ;;
toy) rows=$(pilot_rows 50) flags="$flags --preset tiny --rows 4 --length 32" ;;
pilot) rows=$(pilot_rows 1) flags="$flags --preset small --rows 64 --length 512" ;;
esac
row() { printf '%s\n' "$rows" | awk -v name="$1" '$1 == name'; }
# The row's group, itself first: a group begins with a row that has nothing in common with those before it.
group() { printf '%s\n' "$rows" | awk -v name="$1" '$2 == "-" { within = $1 == name } within { print $1 }'; }

# common WHAT FROM TO: gives TO what it has in common with FROM: whole folders, each file under two names.
common() {
    things='base start started partition.safetensors' phases='"start"'
    [ "$1" = integrated ] && things="$things submodels integrated" phases='"start"\|"S-phase"'
    [ -e "$3/run.json" ] && return
    mkdir -p "$3" || fault "cannot make $3"
    for thing in $things; do [ ! -e "$2/$thing" ] || cp -R -l "$2/$thing" "$3" || fault "cannot link $2/$thing"; done
    if [ -e "$2/seconds.jsonl" ]; then grep "$phases" "$2/seconds.jsonl" > "$3/seconds.jsonl"; fi
}
run() { # seed name what kind flags...: what is shared comes from $first
    seed=$1 name=$2 what=$3 kind=$4 dir=$work/$1/$2
    shift 4
    [ -e "$dir/result.json" ] && return
    echo "seed $seed: $name" >&2
    mkdir -p "$work/$seed" || exit 1
    [ "$what" = - ] || common "$what" "$work/$seed/$first" "$dir"
    if [ "$name" = random ] && [ ! -e "$dir/partition.safetensors" ]; then
        mkdir -p "$dir" && python3 "$here/random_partition.py" "$moedisco" "$corpus" 4 "$seed" "$dir/partition.safetensors" ||
            fault 'no random partition'
    fi
    # shellcheck disable=SC2086
    "$moedisco" run "$kind" "$work/$seed" --name "$name" --corpus "$corpus" --seed "$seed" --device "${DEVICE:-auto}" $flags "$@" \
        > "$dir.log" 2>&1 || { tail -n 3 "$dir.log" >&2; fault "seed $seed: $name failed; $dir.log"; }
}
# What is large in a finished row.
drop_models() { (cd "$1" && rm -rf base start started submodels integrated model checkpoints); }
run_group() { # seed, first row
    first=$2
    for name in $(group "$first"); do
        # shellcheck disable=SC2046
        run "$1" $(row "$name")
    done
    for name in $(group "$first"); do drop_models "$work/$1/$name"; done
}
if [ $# = 3 ]; then # one group, as it is called below
    run_group "$2" "$3"
    exit
fi

mkdir -p "$work" || exit 1
failed=0
if [ "$scale" = demo ] && [ ! -e "$work/text.idx" ]; then
    DEMO_TEXT_ONLY=1 DEMO_WORK=$work sh "$here/../../examples/demo.sh" "$moedisco" > "$work/log" || exit 1
    "$moedisco" corpus build "$work/text" "$work/text" > "$work/log" || exit 1
fi
for seed in ${SEEDS-1 2 3}; do
    for first in ${ROWS:-$(printf '%s\n' "$rows" | awk '$2 == "-" { print $1 }')}; do echo "$seed $first"; done
done | xargs -r -P "${JOBS:-1}" -n 2 sh "$0" "$moedisco" || failed=1

# One line a finished run: name, held-out loss, money, FLOP, seconds here, cheap steps, dear steps. The first of a name counts.
numbers() { sed -n 's/^ *"\([a-z_-]*\)": \([-0-9.e+]*\),\{0,1\}$/\1 \2/p' "$1" "$2" | awk '!($1 in of) { of[$1] = $2 }
    END { print of["held_out_loss"], of["money"], of["flops"], of["seconds_here"], of["start-steps"] + of["experts"] * of["branch-steps"], of["steps"] }'; }
for result in "$work"/*/*/result.json; do
    [ -e "$result" ] || continue
    dir=${result%/result.json}
    echo "${dir##*/} $(numbers "$result" "$dir/run.json")"
done | awk '{ n[$1]++; sum[$1] += $2; square[$1] += $2 * $2; money[$1] += $3; flops[$1] += $4; here[$1] += $5; cheap[$1] += $6; dear[$1] += $7
              if (n[$1] == 1 || $2 < low[$1]) low[$1] = $2
              if (n[$1] == 1 || $2 > high[$1]) high[$1] = $2 }
     END { printf "%-17s %5s %8s %8s %19s %9s %7s %7s %10s %9s %8s\n", "pipeline", "seeds", "mean", "std", "held-out loss, range", "cheap", "dear", "cost",
               "money", "FLOP", "seconds"
           for (p in n) { m = sum[p] / n[p]; v = n[p] > 1 ? (square[p] - n[p] * m * m) / (n[p] - 1) : 0
               printf "%-17s %5d %8.4f %8.4f  %8.4f - %8.4f %9.0f %7.0f %7.0f %10s %9.3g %8.1f\n", p, n[p], m, sqrt(v > 0 ? v : 0), low[p], high[p],
                   cheap[p] / n[p], dear[p] / n[p], cheap[p] / n[p] / 6.1 + dear[p] / n[p], sprintf("$%.3g", money[p] / n[p]), flops[p] / n[p],
                   here[p] / n[p] | "sort" } }'
echo 'cheap, dear: steps of submodels (all of them) and of the whole model. cost: in dear steps, a cheap one being 1/6.1 of one (the price of a step on'
echo 'the two devices of the MoE-DisCo paper). seconds: of the steps, here.'
exit $failed

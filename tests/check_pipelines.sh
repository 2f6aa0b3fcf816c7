#!/bin/sh
# check_pipelines.sh: pipelines and their directories: settings, the table, moving, damage, two at once.
. "$(dirname "$0")/command.sh"

tiny='--preset tiny --rows 4 --length 32 --checkpoint-every 20 --quiet'
steps='--start-steps 10 --branch-steps 60 --steps 60'
# shellcheck disable=SC2086
expect 0 run disco run --text text $tiny $steps
for thing in run.json partition.safetensors submodels/3/model model checkpoints metrics.jsonl result.json; do
    [ -e run/disco/$thing ] || wrong "run/disco/$thing is not there"
done
has out 'disco '
grep -q "$work" run/disco/run.json && wrong 'run.json holds an absolute path'
refuse 2 '--steps 60' run disco run --steps 121
refuse 2 'from' run disco run --text c
expect 0 run disco run --text "$work/text"
grep -q '[0-9]\.[0-9]*0000000[0-9]' run/disco/run.json && wrong 'a short number is printed long in run.json'
# edited by hand: told of, not gone on with
cp run/disco/run.json kept.json
for edit in 's/"format": 1/"format": 9/' '/"branch-steps"/d' 's/"hidden": 32/"hidden": 64/' 's/"rows": 4/"rows": -4/' '3,$d'; do
    sed "$edit" kept.json > run/disco/run.json
    refuse 2 'run/disco/' run disco run
done
refuse 2 'no JSON object' info run
cp kept.json run/disco/run.json
# what a later phase would stumble over is told of before run.json is there
refuse 2 'cannot make 400 clusters' run disco early --text text --preset tiny --experts 400 --steps 1 --branch-steps 1
refuse 3 'of memory' run disco early --text text --preset tiny --minutes 1 --host-limit 1000000
refuse 2 'has no weights to take' run disco early --text text --preset tiny --steps 1 --branch-steps 1 --merge explicit
[ ! -e early/disco ] || wrong 'a pipeline is left that could not be done'
# shellcheck disable=SC2086
expect 0 run full run $tiny --equal-money-to disco
# shellcheck disable=SC2086
expect 0 run upcycle run $tiny --equal-money-to disco
[ "$(grep -c '^  \(disco\|full\|upcycle\) *[0-9]' out)" = 3 ] || { wrong 'the table has not three pipelines'; cat out; }
has out 'priced, not run'
expect 0 info run
expect 0 info run/disco
has out 'finished'
# the configuration that was given is the base's from then on: what it was given by may go, and be named from elsewhere
cp run/full/base/config.json given.json
# shellcheck disable=SC2086
expect 0 run full given --text text --config given.json --rows 4 --length 32 --steps 3 --quiet
rm given.json given/full/result.json
expect 0 run full given
# the S-phase leaves the shared part alone when told so
# shellcheck disable=SC2086
expect 0 run disco still --text text $tiny --start-steps 0 --branch-steps 5 --steps 1 --branch-freeze shared
has out 'moved by 0 of'
refuse 2 'nothing-of-it' run disco wrong --text text $tiny --start-steps 0 --branch-steps 5 --steps 1 --branch-freeze nothing-of-it
mkdir moved
mv run moved/run
expect 0 run disco moved/run
expect 0 work moved/run/disco 2
refuse 2 'submodels 0 to 3' work moved/run/disco 4
refuse 2 'no such file' work moved 0
# a submodel that cannot be trained: not retried, named
# shellcheck disable=SC2086
"$moedisco" run disco damaged --text text $tiny --branch-steps 1 --steps 1 > out 2> err
rm -rf damaged/disco/model damaged/disco/integrated damaged/disco/submodels/1/model damaged/disco/submodels/1/checkpoints
printf 'x' > damaged/disco/submodels/1/initial/model.safetensors
refuse 2 'worker 1: ' run disco damaged
# two pipelines begun at once share one corpus; closed standard streams do no harm
# shellcheck disable=SC2086
"$moedisco" run full both --text text $tiny --steps 3 > out1 2> err1 <&- &
process=$!
# shellcheck disable=SC2086
"$moedisco" run upcycle both --text text $tiny --start-steps 3 --steps 3 <&- >&- 2>&- ||
    wrong 'the second of two pipelines begun at once'
wait $process || { wrong 'the first of two pipelines begun at once'; cat err1; }
[ $failed = 0 ]

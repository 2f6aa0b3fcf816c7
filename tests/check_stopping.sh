#!/bin/sh
# check_stopping.sh: a pipeline that is stopped and killed goes on to the same result, with any number of workers and threads.
. "$(dirname "$0")/command.sh"

tiny='--preset tiny --rows 4 --length 32 --checkpoint-every 20 --quiet'
steps='--start-steps 10 --branch-steps 60 --steps 60'
# shellcheck disable=SC2086
expect 0 run disco left --text text $tiny $steps
# stopped and killed at several moments, it ends in the same model
for signal in TERM KILL TERM KILL TERM; do
    # shellcheck disable=SC2086
    "$moedisco" run disco broken --text text $tiny $steps > out 2> err &
    process=$!
    sleep 0.2
    kill -$signal $process 2> /dev/null
    wait $process 2> /dev/null
    got=$?
    case $signal-$got in
    TERM-75 | KILL-137 | TERM-0 | KILL-0) ;;
    *) wrong "exit $got after SIG$signal"; cat err ;;
    esac
    if [ $got = 75 ]; then has err 'the same command'; fi
done
# shellcheck disable=SC2086
expect 0 run disco broken --text text $tiny $steps
same left/disco/model/model.safetensors broken/disco/model/model.safetensors 'killed and gone on'
# a run that has begun, and now has too little memory for its last phase
# shellcheck disable=SC2086
"$moedisco" run disco begun --text text $tiny --branch-steps 100000 --steps 10 > out 2> err &
process=$!
waited=0
while [ ! -e begun/disco/seconds.jsonl ] && [ $waited -lt 600 ]; do sleep 0.1; waited=$((waited + 1)); done
kill -KILL $process
wait $process 2> /dev/null
# its time so far is known all the same
has begun/disco/seconds.jsonl '"S-phase", "seconds": [1-9]'
# shellcheck disable=SC2086
refuse 3 'keeps its settings' run disco begun --text text $tiny --branch-steps 100000 --steps 10 --host-limit 3000000
# one, two and four workers at once give the same submodels
# shellcheck disable=SC2086
expect 0 run disco serial --text text $tiny $steps --workers 1 --threads 3
same serial/disco/submodels/3/model/model.safetensors broken/disco/submodels/3/model/model.safetensors 'workers and threads'
[ $failed = 0 ]

#!/bin/sh
# check_growth.sh: run emo: stages, kills inside training and expansions, growth after integration, refusals; expand.
. "$(dirname "$0")/command.sh"

tiny='--preset tiny --rows 4 --length 32 --checkpoint-every 7 --quiet'
grow='--family dots1 --grow 2,3,6 --rule power --steps 60 --stage-warmup 2 --micro-batches 2 --balance-each micro-batch'
# shellcheck disable=SC2086
expect 0 run emo whole --text text $tiny $grow
for thing in base stages/0/model stages/1/initial stages/1/model stages/2/initial model metrics.jsonl result.json; do
    [ -e "whole/emo/$thing" ] || wrong "whole/emo/$thing is not there"
done
grep -q '"n_routed_experts": 6' whole/emo/model/config.json || wrong 'the last stage has not 6 experts'
has whole/emo/metrics.jsonl '"gini"'
# the stages have all steps, each takes the data up where the one before left it: as `train` does with --first-row
steps=$(cat whole/emo/stages/0/metrics.jsonl whole/emo/stages/1/metrics.jsonl whole/emo/metrics.jsonl | grep -c '"tokens_per_second"')
[ "$steps" = 60 ] || wrong "$steps steps instead of 60"
# killed at many instants, resumed each time: the same bits
cp -r whole/corpus corpus
# shellcheck disable=SC2086
for pause in 0.05 0.1 0.15 0.2 0.25 0.3 0.1 0.35 0.2 0.4; do
    "$moedisco" run emo killed --text text $tiny $grow > /dev/null 2>&1 &
    process=$!
    sleep "$pause"
    kill -9 "$process" 2> /dev/null
    wait "$process" 2> /dev/null
done
# shellcheck disable=SC2086
expect 0 run emo killed --text text $tiny $grow
same whole/emo/model/model.safetensors killed/emo/model/model.safetensors 'killed and resumed'
rm -r killed/emo/model
expect 0 run emo killed
same whole/emo/model/model.safetensors killed/emo/model/model.safetensors 'resumed by what run.json says'
refuse 2 '2,3,7 is given now' run emo killed --grow 2,3,7
refuse 2 'balance-each micro-batch' run emo killed --balance-each step
# both methods: the pool grows after integration
# shellcheck disable=SC2086
expect 0 run disco both --text text $tiny --experts 2 --grow 2,4 --rule power --branch-steps 5 --steps 20 --new-experts clone
grep -q '"num_local_experts": 4' both/disco/model/config.json || wrong 'run disco did not grow'
# between two stages nobody would see that what is beside the run has changed: run.json keeps the corpus' name and the stages
values='35.91 -0.1889 -0.2285 0.0098 35.98 -0.1775 0.5529 -0.0259 2.0732 290.4521 1.3637'
# shellcheck disable=SC2086
printf '{"format": "moedisco-law", "form": "joint", "coefficients": [%s]}\n' \
    "$(printf '{"value": %s}, ' $values | sed 's/, $//')" > own.json
# shellcheck disable=SC2086
expect 0 run emo kept --text text $tiny --grow 2,8 --law own.json --steps 30 --stage-warmup 2
has kept/emo/run.json '"stages": "2:[0-9]*,8:[0-9]*"'
cp kept/emo/model/model.safetensors first
rm -r kept/emo/model kept/emo/checkpoints kept/emo/metrics.jsonl kept/emo/stages/1 own.json
expect 0 run emo kept
same first kept/emo/model/model.safetensors 'the law is gone'
rm -r kept/emo/model kept/emo/checkpoints kept/emo/metrics.jsonl kept/emo/stages/1
expect 0 corpus build other text/1.c text/2.c
for kind in bin idx json; do cp other.$kind kept/corpus/text.$kind; done
refuse 2 'not the corpus that the run was started with' run emo kept
# a softmax router has nothing that loads could move; what has is not told so
# shellcheck disable=SC2086
expect 0 run emo softmax --text text $tiny --grow 2:1280,4:1280 --balance-rate 0.01
has out '--balance-rate changes nothing'
# shellcheck disable=SC2086
expect 0 run emo sigmoid --text text $tiny --family dots1 --grow 2:1280,4:1280 --balance-rate 0.01
grep -q 'changes nothing' out && wrong 'selection biases are said to rest'
# so are flags of rules, and of ways to make experts, that are not taken
# shellcheck disable=SC2086
expect 0 run emo drawn --text text $tiny --grow 2:1280,4:1280 --rule power --exponent 0.6 --new-noise 0.1 --new-std 0.02
for name in rule exponent new-noise; do has out "--$name changes nothing"; done
grep -q -e '--new-std changes' out && wrong 'what is taken is said to change nothing'
expect 0 run full fixed --text text --preset tiny --steps 2 --stage-warmup 3
has out '--stage-warmup changes nothing: there is no --grow'
expect 0 expand drawn/emo/model grown --experts 8 --method clone --std 0.1
has out '--std changes nothing'
# tokens of each stage instead of a rule
# shellcheck disable=SC2086
expect 0 run emo table --text text $tiny --grow 2:1280,4:2560 --evaluate-every 5
has table/emo/stages/0/metrics.jsonl '"step":5,"held_out_loss"'
echo '{' > table/emo/result.json
expect 0 run emo table
has table/emo/result.json '"held_out_loss"'
expect 0 run emo later --text text $tiny --grow 2:1280,4:2560 --first-row 7
cmp -s table/emo/model/model.safetensors later/emo/model/model.safetensors &&
    wrong '--first-row changes nothing where a pool grows'
expect 0 run emo even --text text --preset tiny --grow 2:1280,4:2560,4:1280
[ ! -e even/emo/stages/2/initial ] || wrong 'a stage with the pool of the one before expands it'
refuse 2 'no steps for its stages' run emo other --text text --preset tiny --grow 2,4 --steps 0
refuse 2 'leaves nothing to --steps' run emo other --text text --preset tiny --grow 2:1280,4:2560 --steps 5
refuse 2 'leave it out' run emo other --text text --preset tiny --grow 2,4 --steps 5 --schedule cosine
refuse 2 'give --stage-warmup' run emo other --text text --preset tiny --grow 2,4 --steps 5 --warmup 0.1
mkdir one
echo 'one document' > one/a.txt
refuse 2 'cannot be divided' run emo lone --text one --preset tiny --grow 2,4 --steps 5
[ ! -e lone/corpus ] || wrong 'a corpus that no run can use is kept: more text would not be seen'
refuse 2 'grow is missing' run emo other --text text --preset tiny --steps 5
refuse 2 '2 experts after 4: a pool does not shrink' run emo other --text text --preset tiny --grow 4:1280,2:1280
refuse 2 'more than 1e+15 steps' run emo other --text text $tiny --grow 2:1e18,4:1e18
refuse 2 'less than half a step' run emo other --text text --preset tiny --grow 2:1280,4:1
refuse 2 'begins with 2 experts, and the model has 4' run emo other --text text --preset tiny --experts 4 --grow 2,4 --steps 5
refuse 2 'neither a start nor branches' run emo other --text text --preset tiny --grow 2,4 --branch-steps 5
expect 0 plan full --preset tiny --grow 2:1280,4:1280
refuse 2 'would get no step' plan full --preset tiny --grow 2,4 --steps 1
sed -i 's/"grow": "2,3,6"/"grow": 7/' killed/emo/run.json
refuse 2 'settings.grow is not a value' run emo killed
# expand by itself, and back by what a corpus uses
expect 0 expand whole/emo/base grown --experts 5 --method clone
expect 0 expand grown shrunk --experts 2 --corpus corpus/text --usage-tokens 2000
refuse 2 'give --corpus' expand grown less --experts 2
refuse 2 'is the result and an input too' expand grown grown --experts 9
[ ! -e less ] || wrong 'a refused expansion left something'
exit $failed

#!/bin/sh
# check_law.sh: law fit, law predict, plan emo: figures, files, refusals of one line.
. "$(dirname "$0")/command.sh"

expect 0 law --help
has out 'law predict'
expect 0 plan --help
has out 'disco|full|upcycle'
expect 0 plan emo --help
has out '--step-times'

# ---- what laws say ----
expect 0 law predict --flops 1e20
has out '990M active parameters and 16.8G tokens'
expect 0 law predict --experts 8,64 --top-k 8 --active 1e9 --tokens 2e10 --json
[ "$(grep -c '"event":"law"' out)" = 2 ] || wrong 'not a line for each number of experts'
expect 0 law predict --law abnar-2025 --active 1e9 --tokens 2e10 --experts 8
has err 'not known here'
refuse 2 'neither a file nor one of ludziejewski' law predict --law nobody-2026
refuse 2 'belong together' law predict --active 1e9
refuse 2 'one or the other' law predict --active 1e9 --tokens 1e9 --flops 1e20
refuse 2 'must be numbers' law predict --experts 8,x
refuse 2 'experts is 4' law predict --experts 4 --top-k 8

# ---- runs into a law: L = 25 N^-0.17 + 80 D^-0.22 + 1.5, whatever E ----
awk 'BEGIN { print "name,E,N,D,L"; for (i = 0; i < 90; i++) { n = 3e7 * exp(i % 9 * 0.5); d = n * 3 * exp(i % 7 * 0.6)
    printf "run%d,%d,%.0f,%.0f,%.9g\n", i, 2 ^ (i % 4), n, d, 25 * n ^ -0.17 + 80 * d ^ -0.22 + 1.5 } }' > runs.csv
awk -F, 'NR > 1 { printf "{\"experts\": %s, \"active\": %s, \"tokens\": %s, \"loss\": %s, \"note\": \"%s\"}\n", $2, $3, $4, $5, $1 }' runs.csv > runs.jsonl
refuse 2 'is the file of the runs' law fit runs.csv --out ./runs.csv
expect 0 law fit runs.csv --out law.json --bootstrap 5
has out 'fitted to 90 runs'
has law.json '"moedisco-law"'
mv law.json first.json
expect 0 law fit runs.jsonl --out law.json --bootstrap 5 --threads 1
same first.json law.json 'the same runs as CSV and as JSON lines'
sed 's/[^,]*/"&"/g' runs.csv > quoted.csv
expect 0 law fit quoted.csv --out law.json --bootstrap 5
same first.json law.json 'the same runs in quotation marks'
awk -F, 'NR == 1 { printf "\357\273\277"; $1 = "note" }
    { printf "\"%s\",%s,\"%s\",%s,\"%s, or \"\"so\"\"\"\r\n", $2, $3, $4, $5, $1 }' runs.csv > quoted.csv
expect 0 law fit quoted.csv --out law.json --bootstrap 5
same first.json law.json 'the same runs with a byte order mark, carriage returns, and commas in quotation marks'
{ printf '\357\273\277'; cat runs.jsonl; } > marked.jsonl
expect 0 law fit marked.jsonl --out law.json --bootstrap 5
same first.json law.json 'JSON lines with a byte order mark'
expect 0 law predict --law law.json --experts 8 --active 1e9 --tokens 1e10 --json
loss=$(sed -n 's/.*"loss":\([0-9.]*\).*/\1/p' out)
awk -v loss="$loss" 'BEGIN { real = 25 * 1e9 ^ -0.17 + 80 * 1e10 ^ -0.22 + 1.5; exit !(loss > real * 0.999 && loss < real * 1.001) }' ||
    wrong "a fit without noise predicts $loss"
expect 0 law predict --law law.json --experts 8 --active 1e12 --tokens 1e10
has err 'outside the'
refuse 2 'names no column active' law fit text/1.csv
sed 's/,L$/,M/' runs.csv > bad.csv
refuse 2 'bad.csv: line 1 names no column loss' law fit bad.csv
sed '5s/,[^,]*$/,fast/' runs.csv > bad.csv
refuse 2 'bad.csv: line 5: loss is "fast", no number' law fit bad.csv
sed '5s/,[^,]*$//' runs.csv > bad.csv
refuse 2 'bad.csv: line 5 has 4 fields' law fit bad.csv
sed '5s/,[^,]*$/,nan/' runs.csv > bad.csv
refuse 2 'bad.csv: line 5: loss is nan' law fit bad.csv
{ echo '['; cat runs.jsonl; } > bad.jsonl
refuse 2 'bad.jsonl: line 1 begins a JSON list' law fit bad.jsonl
sed '5s/"loss"/"lost"/' runs.jsonl > bad.jsonl
refuse 2 'bad.jsonl: line 5 has no loss' law fit bad.jsonl
head -6 runs.csv > bad.csv
refuse 2 'bad.csv: 5 runs' law fit bad.csv
refuse 2 'nowhere.csv' law fit nowhere.csv
echo '{"format": "moedisco-law", "form": "joint", "coefficients": []}' > bad.json
refuse 2 'bad.json: .*top_k' law predict --law bad.json
echo '{"format": "moedisco-law", "form": "joint", "top_k": 1, "coefficients": []}' > bad.json
refuse 2 'bad.json: .*the form has 11' law predict --law bad.json
sed 's/"version": *1/"version": 2/' law.json > bad.json
refuse 2 'bad.json: a law of another version' law predict --law bad.json
sed 's/"top_k": *1/"top_k": 4294967297/' law.json > bad.json
refuse 2 'bad.json: .*top_k' law predict --law bad.json

# ---- a growing pool ----
emo='--grow 4,8,16 --preset tiny --top-k 2'
# shellcheck disable=SC2086
{
expect 0 plan emo $emo --all-tokens 1e6 --active 3e8 --step-times 4:1e-6,16:2e-6
has out 'between'
has out '16 experts throughout: 0.0005'
expect 0 plan emo $emo --all-tokens 1e6 --rule power --json
[ "$(grep -c '"event":"stage"' out)" = 3 ] || wrong 'not a line for each stage'
has out '"timed":false'
refuse 2 'would get no step' plan emo $emo --all-tokens 1e6 --law law.json --active 3e8 # of a law that does not see E
refuse 2 'all-tokens is missing' plan emo $emo
refuse 2 'gives no time at 16' plan emo $emo --all-tokens 1e6 --step-times 4:2e-6,8:1e-6
refuse 2 'lack their seconds' plan emo $emo --all-tokens 1e6 --step-times 4,8:1e-6
refuse 2 'give --corpus' plan emo $emo --all-tokens 1e6 --measure 1
refuse 2 'would get no step' plan emo $emo --all-tokens 2000
}
expect 0 plan emo --grow 4:4e5,8:3e5 --preset tiny --step-times 4:1e-6,8:2e-6 --json
has out '"saved":0.285'
refuse 2 'tokens for each stage' plan emo --grow 4:4e5,8 --preset tiny
refuse 2 'each stage already' plan emo --grow 4:4e5,8:3e5 --all-tokens 1e6 --preset tiny
expect 0 plan emo --grow 1:4e5,2:3e5 --preset tiny
refuse 2 'there are only --experts 1' plan emo --grow 1:4e5,2:3e5 --preset tiny --top-k 2
refuse 2 'a pool does not shrink' plan emo --grow 8:4e5,4:3e5 --preset tiny
refuse 2 'grow is missing' plan emo
refuse 2 'grow names the pool' plan emo --grow 4,8 --experts 4
# what a plan and its run both have is the same by default
defaults() {
    "$moedisco" "$1" emo --help | awk '/^  --/ { flag = $1 } /default [^]]*\]$/ && flag {
        sub(/.*default /, ""); print flag, $0; flag = "" }' | sort -u
}
defaults plan > plan-defaults
defaults run > run-defaults
join plan-defaults run-defaults > both
[ "$(wc -l < both)" -gt 20 ] || wrong 'plan emo and run emo have few flags in common'
awk '$2 != $3' both > apart
[ ! -s apart ] || wrong "plan emo and run emo differ by default: $(cat apart)"
expect 0 corpus build c/text text
expect 0 plan emo --grow 2,4 --all-tokens 1e6 --rule power --preset tiny --corpus c/text --measure 0.01 --json \
    --family dots1 --rows 4 --micro-batches 2 --balance-each micro-batch # which takes time: it is measured as it will be run
has out '"timed":true'
[ $failed = 0 ]

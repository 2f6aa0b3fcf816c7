#!/bin/sh
# check_choices.sh: multiple-choice tasks: the choices and log-likelihoods that lm-evaluation-harness finds for a random model
# (tests/peers/lm_eval_choices.py --fixture), by bytes and through a tokenizer program; refusals.
fixtures=$(cd "$(dirname "$0")/fixtures/choices" && pwd) || exit 1
. "$(dirname "$0")/command.sh"

# the model of the fixture: its numbers are the same on every machine
expect 0 init m --family mixtral --hidden 32 --layers 2 --heads 4 --experts 4 --expert-width 48 --init-std 0.3 --seed 5 \
    --context-length 4096 --vocabulary 257
# against TASK: the items in out are those of the fixture
against() {
    sed -n 's/.*"acc":\([0-9]*\),"acc_norm":\([0-9]*\),"acc_bytes":\([0-9]*\),"likelihoods":\[\(.*\)\].*/\1 \2 \3 \4/p' out | tr ',' ' ' > found
    awk 'NR == FNR { line[NR] = $0; lines = NR; next }
        { items++; if (split(line[FNR], want, " ") != NF) bad = 1
          for (i = 1; i <= NF; i++) { d = $i - want[i]; if (i <= 3 ? d != 0 : d > 2e-3 || d < -2e-3) bad = 1 } }
        END { exit bad || items != lines || !items }' "$fixtures/$1.expected" found || { wrong "$1: not what the harness finds:"; cat found; }
}
for task in arc_easy piqa; do
    expect 0 eval m "$fixtures/$task.jsonl" --task $task --json
    against $task
    expect 0 eval m "$fixtures/$task.jsonl" --task $task --json --kernels reference
    against $task
done
expect 0 eval m "$fixtures/arc_easy.jsonl" --task arc_easy
has out 'arc_easy: 5 items, tokens by bytes'
has out 'acc       0.4000 +- 0.2449'
expect 0 eval m "$fixtures/piqa.jsonl" --task piqa --items 2 --json
has out '"event":"task","task":"piqa","tokenizer":"bytes","items":2,'

# a program that makes bytes of texts: the same figures
cat > bytes.sh <<'END'
#!/bin/sh
[ "$(cat "$1")" = mine ] || { echo 'another file' >&2; exit 1; }
while IFS= read -r line; do
    line=${line#\"}
    printf '%b' "$(printf %s "${line%\"}" | sed 's/\\"/"/g')" > bytes
    od -An -v -tu1 bytes | tr -s ' \n' ',,' | sed 's/^,/[/; s/,$/]/'
    echo
done
END
chmod +x bytes.sh
echo mine > m/tokenizer.json
expect 0 eval m "$fixtures/arc_easy.jsonl" --task arc_easy --json --tokenizer-program ./bytes.sh
against arc_easy
has out '"tokenizer":"m/tokenizer.json"'
echo other > other.json
refuse 2 'bytes.sh other.json: another file' eval m "$fixtures/piqa.jsonl" --task piqa --tokenizer other.json --tokenizer-program ./bytes.sh
refuse 2 'nowhere.sh cannot be run' eval m "$fixtures/piqa.jsonl" --task piqa --tokenizer-program ./nowhere.sh
refuse 2 'gave tokens for 0 of 12 texts' eval m "$fixtures/piqa.jsonl" --task piqa --tokenizer-program true
refuse 2 'wrote far more than tokens of 12 texts' eval m "$fixtures/piqa.jsonl" --task piqa --tokenizer-program yes
printf '#!/bin/sh\necho "[1, 257]"\n' > far.sh
chmod +x far.sh
refuse 2 'no list of tokens from 0 to 256' eval m "$fixtures/piqa.jsonl" --task piqa --tokenizer-program ./far.sh
rm m/tokenizer.json

# items that are none
sed 's/, "label": [01]//' "$fixtures/piqa.jsonl" > bare.jsonl
refuse 2 'bare.jsonl: line 1 does not say which choice is right' eval m bare.jsonl --task piqa
printf '1\n0\n0\n' > labels
refuse 2 'bare.jsonl: line 4 does not say' eval m bare.jsonl --task piqa --labels labels
printf '1\nx\n0\n0\n' > wrong
refuse 2 'wrong: line 2 is no number' eval m bare.jsonl --task piqa --labels wrong
printf '0\n' >> labels
expect 0 eval m bare.jsonl --task piqa --labels labels --json
against piqa
refuse 2 'has no question' eval m bare.jsonl --task arc_easy
echo '{"query": "Which?", "choices": ["a", "b"], "gold": 2}' > far.jsonl
refuse 2 'a choice is right which it does not have' eval m far.jsonl --task arc_easy
expect 0 init short --preset tiny --context-length 32
refuse 2 'item 1: choice 1 has 38 tokens' eval short bare.jsonl --task piqa --labels labels
expect 0 init words --preset tiny --vocabulary 300
refuse 2 'a vocabulary of 300 tokens, and no tokenizer.json' eval words bare.jsonl --task piqa --labels labels
[ $failed = 0 ]

#!/bin/sh
# check_verbs.sh: every verb with tiny models: what it makes, exit codes, refusals of one line.
. "$(dirname "$0")/command.sh"

# ---- help and usage ----
expect 0 --help
has out 'try'
expect 0 train --help
has out '--learning-rate X'
has out 'default 0.001'
has out 'example: moedisco train'
refuse 2 'did you mean train' trian
refuse 2 'did you mean --hidden' init m --hiden 32
refuse 2 'usage: moedisco init' init
refuse 2 'must be a whole number from 1' init m --hidden 0
refuse 2 'must be a number' train a b c --learning-rate fast
refuse 2 'mixtral|qwen2_moe' init m --family gpt
refuse 2 'needs a value' init m --hidden
expect 0 info
has out 'kernels'
# the folder that is named is looked in, and what does not load there is listed
mkdir plugins
echo rubbish > plugins/libmoedisco-rubbish.so
expect 0 info --plugin-dir plugins
has out 'libmoedisco-rubbish.so.*not usable'
mkfifo plugins/libmoedisco-pipe.so
timeout 60 "$moedisco" info --plugin-dir plugins > out 2> err || wrong 'a named pipe among the plug-ins holds info up'
has out 'libmoedisco-pipe.so.*no regular file'
rm -r plugins
expect 0 run --help
has out 'run upcycle'
expect 0 help run disco
has out '--branch-steps'
refuse 2 'needs a value' plan disco --corpus --steps 3
refuse 2 'whole number' init m --seed ' -5'
refuse 2 '--seed is given twice' init m --seed 1 --layers 2 --seed=1
refuse 2 '--json is given twice' info --json --no-json
refuse 2 'leave --start-steps' plan full --branch-steps 5
refuse 2 'shared out by prices' plan disco --money 1 --cheap-price 0

# ---- corpus ----
expect 0 corpus build c/text text
has out 'built c/text from 240 files: 240 documents'
expect 0 corpus info c/text --json
has out '"documents":240'
mkdir empty
refuse 2 'empty' corpus build c/none empty
[ ! -e c/none.bin ] && [ ! -e c/none.idx ] || wrong 'a corpus is left of an empty folder'
printf 'a\0b' > binary
refuse 2 'binary' corpus build c/none binary
refuse 2 'ends in a name' corpus build new/ text
refuse 2 'empty' corpus build new/folder/none empty
[ ! -e new ] || wrong 'folders are left of a refused corpus'
mkdir foreign
for file in x.bin x.idx y.json z.json; do echo '{"format": "a stranger'"'"'s"}' > foreign/$file; done
echo 'no JSON' > foreign/z.json
cp -r foreign kept
refuse 2 'foreign/x.bin: .*not replaced' corpus build foreign/x text
rm foreign/x.bin kept/x.bin
refuse 2 'foreign/x.idx: .*not replaced' corpus build foreign/x text
refuse 2 'foreign/y.json: describes no corpus' corpus build foreign/y text
refuse 2 'foreign/z.json: describes no corpus' corpus export c/text foreign/z
diff -r foreign kept || wrong 'files of somebody else were changed'
rm -r foreign kept
cp c/text.json c/half.json # what a killed build leaves
cp c/text.bin c/half.bin
expect 0 corpus build c/half text/1.c
expect 0 corpus build c/half text
same c/half.bin c/text.bin 'a corpus built over another'
head -c 100 c/text.idx > c/short.idx
cp c/text.bin c/short.bin
refuse 2 'short.idx' corpus info c/short
refuse 2 'nowhere' corpus info nowhere
refuse 2 'nowhere' info nowhere

# ---- places that cannot be written: wrong input, whoever comes upon it ----
long=$(printf '%0300d' 0)
expect 0 init place --preset tiny
for place in "$long" "text/1.c/in" /dev/null/in; do
    refuse 2 ': cannot \|is not a ' corpus build "$place" text
    refuse 2 ': cannot \|is not a ' init "$place" --preset tiny
    refuse 2 ': cannot \|is not a ' split place "$place"
    refuse 2 ': cannot \|is not a ' train place c/text "$place" --steps 1
    refuse 2 ': cannot \|is not a ' run full "$place" --text text --preset tiny --steps 1
done
mkdir closed
chmod 755 .
chmod 555 closed
nobody=
[ "$(id -u)" = 0 ] && nobody='setpriv --reuid=65534 --regid=65534 --clear-groups' # root may write there all the same
if $nobody "$moedisco" --version > out 2> err; then
    for line in 'corpus build closed/c text' 'init closed/m --preset tiny' 'split place closed/s' \
        'cluster c/text closed/p --clusters 2' 'train place c/text closed/t --steps 1' \
        'run full closed/run --text text --preset tiny --steps 1'; do
        # shellcheck disable=SC2086
        $nobody "$moedisco" $line > out 2> err
        [ $? = 2 ] || wrong "not exit 2 in a folder that is closed: $line"
        has err 'ermission denied'
    done
fi
rm -rf closed place
# standard output that is full or closed, and a reader that has seen enough
if [ -e /dev/full ]; then
    for line in --help --version 'corpus info c/text' 'init --help'; do
        # shellcheck disable=SC2086
        "$moedisco" $line > /dev/full 2> err && wrong "exit 0 with a full standard output: $line"
        has err 'standard output could not be written'
    done
fi
"$moedisco" --help | : || wrong 'a reader that leaves is a fault'

# ---- model, clusters, split, train, integrate ----
# a limit on file sizes ends a write with a sentence, not the process with a signal
(ulimit -f 2; "$moedisco" init limited --preset tiny > out 2> err)
[ $? = 2 ] || wrong 'not exit 2 at a limit on file sizes'
has err 'limited.*cannot write: File too large'
[ -z "$(ls -d limited* 2> /dev/null)" ] || wrong "a limit on file sizes leaves $(ls -d limited*)"
expect 0 init m --preset tiny
refuse 2 'holds a model already' init m --preset tiny
expect 0 info m
has out 'mixtral, 2 layers, hidden 32, 4 experts'
has out 'one of 4 parts'
has out 'nothing is wrong with it: files, shapes and every number'
expect 0 info m/config.json --json
has out '"event":"memory","what":"part","parts":4'
# damage, by tensor name; the exit code says it
cp -r m damaged
size=$(wc -c < damaged/model.safetensors)
head -c $((size - 1)) m/model.safetensors > damaged/model.safetensors
refuse 2 'damaged: 1 fault' info damaged
has out 'tensor lm_head.weight is cut off: of its 32896 bytes 32895 are there'
head -c $((size - 16)) m/model.safetensors > damaged/model.safetensors
printf '\000\000\300\177\000\000\200\377\000\000\200\077\000\000\200\077' >> damaged/model.safetensors
refuse 2 'damaged: 1 fault' info damaged --json
has out '"kind":"not_finite","tensor":"lm_head.weight",.*"count":2'
expect 0 info damaged --no-numbers
rm damaged/model.safetensors
expect 0 info damaged
has out 'a configuration alone'
rm -r damaged
echo '{"model_type": "mixtral", "hidden_size": -3}' > bad.json
refuse 2 'bad.json' init m2 --config bad.json
echo '{"model_type": "parrot"}' > bad.json
refuse 2 'parrot' init m2 --config bad.json
[ ! -e m2 ] || wrong 'something is left of a refused configuration'
strange=$(printf 'm\351')
expect 0 init "$strange" --preset tiny --json
has out '"path":"m?"'
expect 0 cluster c/text p.safetensors --clusters 4 --model m --json
[ "$(grep -c '"event":"cluster"' out)" = 4 ] || wrong 'not four clusters'
has out '"typical":\["'
grep -v '^{' out && wrong 'not only JSON lines with --json'
refuse 2 '2000 clusters' cluster c/text q.safetensors --clusters 2000
cp c/text.idx kept.idx
refuse 2 'is no partition: it is not replaced' cluster c/text c/text.idx --clusters 4
refuse 2 'cannot be made' cluster c/text nowhere/p --clusters 4
same kept.idx c/text.idx 'a corpus that a partition was to be written over'
expect 0 info p.safetensors
has out '240 documents in 4 clusters'
expect 0 corpus export c/text c/one --partition p.safetensors --cluster 1
expect 0 corpus build c/other text/1.c text/2.c text/1.txt text/2.txt
refuse 2 '' corpus export c/other c/two --partition p.safetensors --cluster 1
refuse 2 'is the result and the input too' corpus export c/text ./c/text --partition p.safetensors --cluster 1
expect 0 split m sub
expect 0 integrate m whole sub/0 sub/1 sub/2 sub/3
same m/model.safetensors whole/model.safetensors 'split and integrate without training'
# experts by list and by usage, from files and measured; submodels say what they hold, or a table does
echo '{"experts": [[3, 1], [[0, 2], [2, 0]]]}' > lists.json
expect 0 split m lists --experts lists.json
has lists/split.json '"parts": 2'
expect 0 integrate m whole2 lists/0 lists/1
same m/model.safetensors whole2/model.safetensors 'split by list and integrate without training'
expect 0 integrate m whole2 lost lists/1 --allow-missing
sed -i 's/"moedisco"/"forgotten"/' lists/0/config.json lists/1/config.json
expect 0 integrate m whole2 lists/0 lists/1 --experts lists/split.json
same m/model.safetensors whole2/model.safetensors 'submodels that say nothing, and a table'
expect 0 cluster c/text two.safetensors --clusters 2 --model m --quiet
expect 0 split m used --partition two.safetensors --corpus c/text
has out 'of the choices of its cluster (50.0% by chance)'
expect 0 split m again --usage used/split.json
same used/split.json again/split.json 'split by usage that was measured before'
same used/1/model.safetensors again/1/model.safetensors 'split by usage that was measured before'
refuse 2 'expert 9 of 4' split m bad --experts "$(echo '{"experts": [[9], [1]]}' > nine.json; echo nine.json)"
refuse 2 'expert 1 is given to part 0 and to part 1' split m bad --experts "$(echo '{"experts": [[1], [1]]}' > twice.json; echo twice.json)"
refuse 2 'must be numbers of (2 parts, 2 layers, 4 experts)' split m bad --usage "$(echo '{"usage": [[1], [1]]}' > few.json; echo few.json)"
refuse 2 'needs --corpus' split m bad --partition two.safetensors
echo '{"experts": [[[3], []], [[2], []]]}' > none.json
refuse 2 'part 0, layer 1: is no list of experts' split m bad --experts none.json
echo '{"usage": [[[1e308, 1e308, 0, 0], [1, 0, 0, 0]], [[0, 0, 1, 1], [0, 1, 0, 0]]]}' > vast.json
expect 0 split m vast --usage vast.json --json
refuse 2 'three ways' split m bad --experts lists.json --usage used/split.json
refuse 2 'assigned to 2 parts' split m bad --experts lists.json --parts 4
[ ! -e bad ] || wrong 'something is left of a refused split'
# files of a bounded size, and what goes along
echo '{}' > m/tokenizer.json
expect 0 split m shards --shard-bytes 20000
[ -e shards/0/model.safetensors.index.json ] && [ -e shards/3/tokenizer.json ] || wrong 'no index or no tokenizer'
expect 0 integrate m whole3 shards/0 shards/1 shards/2 shards/3
same m/model.safetensors whole3/model.safetensors 'shards'
same m/tokenizer.json whole3/tokenizer.json 'the tokenizer'
rm m/tokenizer.json
expect 0 integrate m ridged sub/0 sub/1 sub/2 sub/3 --gate ridge --partition p.safetensors --corpus c/text
expect 0 integrate m carried sub/0 sub/1 sub/2 sub/3 --gate submodels --dtype bf16
has carried/config.json bfloat16
refuse 2 'needs --partition and --corpus' integrate m bad sub/0 sub/1 sub/2 sub/3 --gate ridge
refuse 2 'has 2 clusters for 4' integrate m bad sub/0 sub/1 sub/2 sub/3 --gate ridge --partition two.safetensors --corpus c/text
# dense models: a part of one expert, and back; into experts
expect 0 split m dense --dense
has dense/0/config.json '"mistral"'
expect 0 integrate m undense dense/0 dense/1 dense/2 dense/3
same m/model.safetensors undense/model.safetensors 'dense submodels that were not trained'
refuse 2 'a dense model is one expert' split m bad --dense --parts 2
expect 0 upcycle dense/0 grown --experts 6 --redraw 0.5
has out 'mixtral, 6 experts'
refuse 2 'mixtral' upcycle m bad
refuse 2 'an input too' upcycle dense/0 dense/0
[ ! -e bad ] || wrong 'something is left of what was refused'
refuse 2 'sub/1: ' integrate m mixed sub/1 sub/0 sub/2 sub/3
refuse 2 'an input too' integrate m m sub/0 sub/1 sub/2 sub/3
refuse 2 'nowhere' split nowhere left
[ ! -e left ] || wrong 'a folder is left of a refused split'
[ ! -e mixed ] || wrong 'something is left of a refused integration'
refuse 2 'missing' integrate m lost sub/0 lost sub/2 sub/3
expect 0 integrate m lost sub/0 lost sub/2 sub/3 --allow-missing
short='--rows 4 --length 32 --quiet'
# shellcheck disable=SC2086
expect 0 train sub/0 c/text t0 --partition p.safetensors --cluster 0 --steps 6 $short
# shellcheck disable=SC2086
expect 0 train dense/1 c/text dense-trained --partition p.safetensors --cluster 1 --steps 6 $short
has dense-trained/model/config.json '"mistral"'
expect 0 integrate m undense dense/0 dense-trained/model dense/2 dense/3
# shellcheck disable=SC2086
expect 0 train m c/text t --steps 12 --json $short
has out '"event":"trained"'
cp t/model/model.safetensors first
# shellcheck disable=SC2086
expect 0 train m c/text t --steps 12 $short
same first t/model/model.safetensors 'training that was finished already'
# shellcheck disable=SC2086
refuse 2 'with steps 12, this trainer has 13; --steps as it was goes on' train m c/text t --steps 13 $short
# shellcheck disable=SC2086
refuse 2 'with corpus view .* the documents of it as they were' train m c/text t --steps 12 --held-out 0.2 $short
# shellcheck disable=SC2086
refuse 2 'with beta1 0.9, this trainer has 0.3;' train m c/text t --steps 12 --beta1 0.3 $short
# shellcheck disable=SC2086
refuse 1 'nan' train m c/text nan --steps 300 --learning-rate 100 --clip 0 --beta2 0 --checkpoint-every 1 $short
[ -d nan/checkpoints ] || wrong 'a loss that turned NaN left no checkpoint'
has err 'step [0-9]'
# what began with full moments goes on with them alone, and says so where there is room for lean ones only
needed() { sed -n "s,.* \([0-9.]*\) MB of memory$,\1,p" out; }
# shellcheck disable=SC2086
expect 0 train m c/text lean --steps 3 --policy lean $short
lean=$(needed)
# shellcheck disable=SC2086
expect 0 train m c/text full --steps 3 $short
between=$(echo "$lean $(needed)" | awk '{ printf "%d", ($1 + $2) * 500000 }')
rm -r full/model
# shellcheck disable=SC2086
expect 3 train m c/text full --steps 3 --host-limit "$between" $short
has err 'as its checkpoint was made: allow more'
half_of_need() { echo $(($(sed -n 's/.*training needs \([0-9]*\).* MB of memory.*/\1/p' err) * 500000)); }
would_fit() { sed -n 's/.*; \(--.*\) would fit.*/\1/p' err; }
refuse 3 'memory' train m c/text limited --steps 3 --rows 64 --host-limit 1000000 --quiet
half=$(half_of_need)
refuse 3 'would fit' train m c/text limited --steps 3 --rows 64 --host-limit "$half" --quiet
# shellcheck disable=SC2046
expect 0 train m c/text limited --steps 3 --rows 64 --host-limit "$half" --quiet $(would_fit)
# of a device's memory it is the device's that is told
refuse 3 'bytes on the device, the limit is 1000000' train m c/text limited --steps 3 --quiet --plugin-dir "$OUT/tests/plugins/fake" \
    --device fake:0 --device-limit 1000000
refuse 3 'of memory of fake:0, which has 1.07 GB; --micro-batches [0-9]* would fit' run full device --text text --preset tiny --steps 3 \
    --rows 4096 --plugin-dir "$OUT/tests/plugins/fake" --device fake:0
expect 0 plan full --preset tiny --steps 3 --plugin-dir "$OUT/tests/plugins/fake" --device fake:0
has out 'memory of fake:0'
expect 0 eval t/model c/text --part held-out
has out 'bits per byte'
has out 'layer 1:'
expect 0 sample t/model 'The ' --bytes 20 --seed 3
cp out first
expect 0 sample t/model 'The ' --bytes 20 --seed 3
same first out 'sampling with the same seed'
expect 0 plan disco --preset tiny --steps 10 --branch-steps 10
has out 'S-phase'
has out 'F-phase'
has out 'inferred'
expect 0 plan upcycle --preset tiny --money 0.001 --json
has out '"event":"plan"'
# an infinite perplexity is JSON too
# shellcheck disable=SC2086
expect 0 train m c/text wild --steps 30 --learning-rate 100 --clip 0 $short
expect 0 eval wild/model c/text --tokens 2000 --json
grep -v '^{.*}$' out && wrong 'not only JSON lines with --json'
mkdir little
head -c 2000 text/1.c > little/a.c
refuse 2 'must be a number from 0.2' try little --minutes -1
refuse 2 'name r?: is not UTF-8' run disco x --text little --name "$(printf 'r\351')"
refuse 2 'too little text' try little --minutes 1 --output tried
[ ! -e tried ] || wrong 'something is left of a try that was refused'
# what would fit is named by try, whose own measurement needs too much, as by run
refuse 3 'choose a smaller one' try text --host-limit 6000000 --output tried --quiet
half=$(half_of_need)
refuse 3 'would fit' run disco runs --text text --host-limit "$half" --quiet
nearest=$(would_fit)
refuse 3 'would fit' try text --host-limit "$half" --output tried --quiet
[ -n "$nearest" ] && [ "$(would_fit)" = "$nearest" ] || wrong "run would fit with '$nearest', try with '$(would_fit)'"
[ $failed = 0 ]

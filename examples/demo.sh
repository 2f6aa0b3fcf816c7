#!/bin/sh
# demo.sh MOEDISCO: real text of this machine into a corpus, its clusters, and three ways to train the same MoE model at equal money.
# Everything lies in demo-run/ of the present folder; run again, it goes on or shows what is there. DEMO_MINUTES (3.5) sets the time,
# DEMO_WORK another folder; with DEMO_TEXT_ONLY=1 it stops when the text is there.
set -u
moedisco=$1
minutes=${DEMO_MINUTES:-3.5}
work=${DEMO_WORK:-demo-run}
began=$(date +%s)
LC_ALL=C
export LC_ALL
fault() { echo "demo: $*" >&2; exit 1; }

# collect KIND BYTES SUFFIX FIND-ARGUMENTS...: copies about BYTES of the files found, spread evenly over them, to $work/text/KIND.
collect() {
    kind=$1 bytes=$2 suffix=$3
    shift 3
    mkdir -p "$work/text.tmp/$kind" || fault "cannot make $work/text.tmp"
    find "$@" -type f -size +1k -size -256k -printf '%s %p\n' 2>/dev/null | sort -k2 | uniq > "$work/list"
    awk -v want="$bytes" '{ size[NR] = $1; name[NR] = substr($0, index($0, " ") + 1); sum += $1 }
        END { share = sum > want ? want / sum : 1
              for (i = 1; i <= NR; i++) { due += share; if (due >= 1) { due -= 1; print name[i] } } }' "$work/list" |
    (
        n=0
        while IFS= read -r file; do
            n=$((n + 1))
            case $file in
            *.gz) zcat "$file" > "$work/text.tmp/$kind/$n$suffix" 2>/dev/null ;;
            *) cp "$file" "$work/text.tmp/$kind/$n$suffix" 2>/dev/null ;;
            esac
        done
    )
    rm -f "$work/list"
    printf '  %-10s %6s files %9s\n' "$kind" "$(find "$work/text.tmp/$kind" -type f | wc -l | tr -d ' ')" \
        "$(du -sk --apparent-size "$work/text.tmp/$kind" | cut -f1) kB"
}

mkdir -p "$work" || fault "cannot make the folder $work"
if [ ! -d "$work/text" ]; then
    echo 'text of this machine:'
    rm -rf "$work/text.tmp"
    collect c 1300000 .h /usr/include -name '*.h'
    collect python 1300000 .py /usr/lib/python3* -name '*.py' ! -path '*/test/*' ! -path '*/encodings/*'
    collect perl 1300000 .pl /usr/share/perl /usr/share/perl5 /usr/lib/*/perl-base /usr/lib/*/perl '(' -name '*.pl' -o -name '*.pm' ')'
    collect licences 1300000 .txt /usr/share/common-licenses /usr/share/doc '(' -path '*common-licenses*' -o -name copyright ')'
    collect manuals 500000 .txt /usr/share/man /usr/share/doc /usr/share/info '(' -path '/usr/share/man/man*.gz' -o -name 'README*' -o \
        -name '*.txt.gz' -o -name 'NEWS.gz' -o -name '*.info.gz' ')'
    kilobytes=$(du -sk --apparent-size "$work/text.tmp" | cut -f1)
    [ "$kilobytes" -ge 300 ] || fault "only $kilobytes kB of text in the usual places of Debian; moedisco try FOLDER works on your own"
    mv "$work/text.tmp" "$work/text"
fi
[ "${DEMO_TEXT_ONLY:-}" != 1 ] || exit 0

# At equal money disco does about 3 times the arithmetic of full and upcycle 3.3 times, since their first phases run on cheap devices:
# of the time, disco's part is two fifths.
part=$(awk -v m="$minutes" 'BEGIN { printf "%.3f", m * 0.38 }')
go() { echo; "$moedisco" "$@" || fault "moedisco $* stopped with exit code $?"; }
go run disco "$work/run" --text "$work/text" --minutes "$part"
go run upcycle "$work/run" --equal-money-to disco
go run full "$work/run" --equal-money-to disco > "$work/full.log"
sed -n '/^== /p; /^F-phase/p; /^ *$/q' "$work/full.log"
echo
echo 'MoE-DisCo, a cloned dense model, and plain full training at the same money:'
"$moedisco" info "$work/run" || fault 'no table'
echo
echo 'what the model of run disco writes (bytes, a few minutes of training):'
go sample "$work/run/disco/model" '/* ' --bytes 240 --color
cat <<END

where it all lies:
  $work/text                  the text, by kind
  $work/run/corpus            the corpus: text.bin, text.idx, text.json
  $work/run/disco             run.json, partition.safetensors, submodels/, model/, metrics.jsonl; likewise upcycle and full
delete $work to start over; on your own text: $moedisco try FOLDER --minutes 10
END
echo "demo done in $(($(date +%s) - began)) seconds"

#!/usr/bin/env bash
# Microseconds of a call of .pte files on a phone that adb sees: docs/on-device.md says what it needs.
set -euo pipefail

calls=1024
turns=5

if [ "$#" -lt 2 ]; then
    echo "usage: $0 EXECUTOR_RUNNER FILE.pte..." >&2
    exit 2
fi
runner=$1
shift
for needed in "$runner" "$@"; do
    [ -f "$needed" ] || { echo "error: no file at $needed" >&2; exit 2; }
done
command -v adb > /dev/null || { echo "error: adb is not installed" >&2; exit 2; }
adb get-state > /dev/null || { echo "error: adb sees no phone: connect one and allow debugging" >&2; exit 2; }

there=/data/local/tmp/pyro-mvae
adb shell mkdir -p "$there"
trap 'adb shell rm -rf "$there"' EXIT
adb push "$runner" "$there/executor_runner" > /dev/null
adb shell chmod +x "$there/executor_runner"
echo "$(adb shell getprop ro.product.model), one thread, median of $turns turns of $calls calls:"

# milliseconds that all calls of a file take, by the runner's log
measured() {
    local said
    said=$(adb shell "cd $there && ./executor_runner --model_path=$1 --num_executions=$2 --cpu_threads=1 2>&1" < /dev/null)
    sed -nE 's/.*[0-9]+ time\(s\) in ([0-9.]+) ms.*/\1/p' <<< "$said" | tail -n 1
}

for file in "$@"; do
    name=$(basename "$file")
    adb push "$file" "$there/$name" > /dev/null
    measured "$name" 10 > /dev/null # warms up
    times=()
    for _ in $(seq "$turns"); do
        times+=("$(measured "$name" "$calls")")
    done
    if [ -z "${times[0]}" ]; then
        echo "error: the runner does not say how long $name took: build it so that it logs to its output, see docs/on-device.md" >&2
        exit 1
    fi
    printf '%s\n' "${times[@]}" | sort -n | awk -v name="$name" -v calls="$calls" \
        '{ ms[NR] = $1 } END { printf "%s: %.1f µs a call\n", name, 1000 * ms[int((NR + 1) / 2)] / calls }'
done

#!/usr/bin/env bash
# Microseconds of .pte files on a phone that adb sees: docs/on-device.md says what it needs.
set -euo pipefail

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
adb shell getprop ro.product.model
for file in "$@"; do
    name=$(basename "$file")
    adb push "$file" "$there/$name" > /dev/null
    for turn in 1 2 3 4 5; do
        echo "$name, turn $turn of 5:"
        # the runner's log says how long it took: on stderr
        said=$(adb shell "cd $there && ./executor_runner --model_path=$name --num_executions=1024 --cpu_threads=1 2>&1")
        grep -i "executed\|ms" <<< "$said" || echo "$said"
    done
done

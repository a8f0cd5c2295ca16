#!/bin/sh
# export.sh EXTRA FOLDER: writes what uv.lock pins for an extra as two hash-checked requirement files, so that they become
# two layers: cuda.txt (torch with its CUDA libraries: gigabytes that seldom change) and rest.txt.
set -eu
cuda='^(torch|triton|nvidia-|cuda-)'

# One line per requirement, its hashes included, so that grep moves them together.
uv export --frozen --no-dev --extra "$1" --no-emit-project --no-annotate --no-header --format requirements.txt |
  sed -e ':join' -e '/\\$/{N;s/ *\\\n */ /;bjoin' -e '}' > "$2/all.txt"
grep -E "$cuda" "$2/all.txt" > "$2/cuda.txt" || true
grep -vE "$cuda" "$2/all.txt" > "$2/rest.txt"

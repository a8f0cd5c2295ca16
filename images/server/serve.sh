#!/bin/sh
# serve [llama-server's own arguments]: serves MODEL_PATH on port 8080 once its SHA-256 equals MODEL_SHA256.
# Mount the model read-only: what is checked here must be what llama-server maps afterwards.
set -eu

refuse() {
  printf 'serve: %s\n' "$1" >&2
  # The kubelet copies this file into the pod's status. It exists only in a pod.
  printf '%s\n' "$1" 2> /dev/null > "${TERMINATION_LOG:-/dev/termination-log}" || true
  exit 78 # EX_CONFIG: another start of the same pod ends the same way. Source: sysexits(3)
}

path=${MODEL_PATH:-}
want=${MODEL_SHA256:-}
[ -n "$path" ] || refuse "MODEL_PATH is not set"
case $want in
  *[!0-9a-f]* | '') refuse "MODEL_SHA256 is not a SHA-256 in lower-case hexadecimal digits" ;;
esac
[ "${#want}" -eq 64 ] || refuse "MODEL_SHA256 has ${#want} digits instead of 64"
[ -f "$path" ] && [ -r "$path" ] || refuse "$path is not a readable file"

# From standard input: the programs escape some names and take others for options.
# openssl uses the CPU's SHA instructions, Debian's sha256sum does not: 3 s instead of 15 for 5 GB.
digest() {
  if command -v openssl > /dev/null; then openssl dgst -sha256 -r; else sha256sum; fi
}
got=$(digest < "$path") || refuse "$path cannot be read to its end"
got=${got%% *}
[ "$got" = "$want" ] || refuse "$path has SHA-256 $got, expected $want: not served"
printf 'serve: %s has SHA-256 %s, as expected\n' "$path" "$got" >&2

exec "${LLAMA_SERVER:-/opt/llama/bin/llama-server}" --model "$path" --host 0.0.0.0 --port 8080 --metrics "$@"

#!/bin/sh
# Runs one command of a build with what the building machine needs to reach its package registries: its CA bundle and pip
# configuration, each a BuildKit secret that may be absent. Bind-mounted, so no image holds any of it.
set -eu

ca=/run/secrets/ca
apt=$(mktemp)
trap 'rm -f "$apt"' EXIT
if [ -s "$ca" ]; then
  export SSL_CERT_FILE="$ca" PIP_CERT="$ca" # uv; pip
  echo "Acquire::https::CAInfo \"$ca\";" >> "$apt"
fi
if [ -s /run/secrets/pip ]; then
  export PIP_CONFIG_FILE=/run/secrets/pip
fi
APT_CONFIG=$apt DEBIAN_FRONTEND=noninteractive "$@"

#!/bin/sh
# Runs one command of a build with what the building machine needs to reach its package registries: its CA bundle, pip
# configuration and apt sources, each a BuildKit secret that may be absent. Bind-mounted, so no image holds any of it.
set -eu

ca=/run/secrets/ca
if [ -s "$ca" ]; then
  export SSL_CERT_FILE="$ca" PIP_CERT="$ca"
fi
if [ -s /run/secrets/pip ]; then
  export PIP_CONFIG_FILE=/run/secrets/pip
fi

if [ -s /run/secrets/uv ]; then
  export UV_CONFIG_FILE=/run/secrets/uv
fi

apt=$(mktemp)
trap 'rm -f "$apt"' EXIT
if [ -s "$ca" ]; then
  echo "Acquire::https::CAInfo \"$ca\";" >> "$apt"
fi
if [ -s /run/secrets/apt.sources ]; then
  echo 'Dir::Etc::SourceList "/run/secrets/apt.sources"; Dir::Etc::SourceParts "-";' >> "$apt"
fi
APT_CONFIG=$apt DEBIAN_FRONTEND=noninteractive "$@"

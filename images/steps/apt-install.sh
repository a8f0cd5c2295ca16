#!/bin/sh
# Installs Debian packages and leaves none of apt's lists, archives and logs in the layer.
set -eu
apt-get update
apt-get install --yes --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log /var/log/alternatives.log

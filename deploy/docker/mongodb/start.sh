#!/usr/bin/env bash
# A replica set with users needs a key file that nobody else may read, which a mounted secret is not.
set -euo pipefail
install -m 0400 -o mongodb -g mongodb /run/secrets/mongodb_keyfile /data/keyfile
exec docker-entrypoint.sh mongod --replSet rs0 --keyFile /data/keyfile --bind_ip_all

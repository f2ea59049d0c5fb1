#!/usr/bin/env bash
# Run once by the image, when the database is made: an example table, what Debezium captures, and two users with no more than they need.
set -euo pipefail
debezium="$(< "${SECRETS:-/run/secrets}/debezium_password")"
gapwatch="$(< "${SECRETS:-/run/secrets}/gapwatch_password")"
psql -v ON_ERROR_STOP=1 -v debezium="$debezium" -v gapwatch="$gapwatch" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE TABLE public.orders (
  id bigint PRIMARY KEY, customer text NOT NULL, status text NOT NULL DEFAULT 'new', amount numeric(12,2) NOT NULL
);
ALTER TABLE public.orders REPLICA IDENTITY FULL;
CREATE PUBLICATION debezium FOR TABLE public.orders;
CREATE ROLE debezium LOGIN REPLICATION PASSWORD :'debezium';
CREATE ROLE gapwatch LOGIN PASSWORD :'gapwatch';
GRANT SELECT ON public.orders TO debezium, gapwatch;
SQL

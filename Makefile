# `make` alone lists the targets. ARGS="…" is handed on to the command of every target.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from
INPUTS := pyproject.toml requirements/dev.lock scripts/setup

.PHONY: help setup demo run test page alerts check native bench bench-peers soak more simulate simulate-scale lint format types imports docs secrets lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

$(STAMP): $(INPUTS)
	@scripts/setup

setup: $(STAMP) ## make .venv with the product in it

demo: $(STAMP) ## the main job on real parts, with a connector that loses writes
	@$(BIN)/gapwatch demo $(ARGS)

run: $(STAMP) ## gapwatch run with gapwatch.yaml
	@$(BIN)/gapwatch run $(ARGS)

test: $(STAMP) ## every test but those of page and alerts
	@$(BIN)/pytest -m "not page and not alerts" -n 3 --no-loadscope-reorder $(ARGS)

page: $(STAMP) ## the dashboard page in a real Chromium
	@scripts/page $(ARGS)

alerts: $(STAMP) ## the alert rules, with promtool and amtool
	@scripts/alerts $(ARGS)

check: lint types imports docs page alerts test ## what CI runs

native: $(STAMP) ## build the native hot path into .venv and test it (needs cargo)
	@scripts/native $(ARGS)

bench: $(STAMP) ## benchmarks, as ratios to the raw limits of the same run
	@$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(STAMP) ## the same work on other stream systems; ARGS="--events 20000 --rounds 1"
	@$(BIN)/python -m benchmarks.peers $(ARGS)

LONG := churn windows grace capture fleet under_fire under_fire_opensearch backfills autorepair

soak: $(STAMP) ## the long forms, over two hours: churn, windows, a measured grace, capture, a fleet with half an hour of flat memory, under fire, repairs; LONG="fleet"
	@$(BIN)/pytest $(LONG:%=tests/acceptance/test_%.py) tests/integration/test_match_kill.py --soak -p no:randomly $(ARGS)

more: $(STAMP) ## the variants that `make test` leaves out as they take minutes
	@$(BIN)/pytest tests -m long --soak $(addprefix --ignore=,$(LONG:%=tests/acceptance/test_%.py)) $(ARGS)

simulate: $(STAMP) ## 20,000 seeds of the deterministic simulation; ARGS="--mutants", "--seed 7", "--seeds 500"
	@$(BIN)/python -m tests.simulation $(ARGS)

simulate-scale: $(STAMP) ## a model of more machines, from measured costs; ARGS="--bench FILE", "--fleet 64,16,16,3"
	@$(BIN)/python -m benchmarks.scale $(ARGS)

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check $(ARGS) .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff write the format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy $(ARGS)

imports: $(STAMP) ## the import rules
	@$(BIN)/lint-imports $(ARGS)

docs: $(STAMP) ## what the documents say is what the code does
	@$(BIN)/pytest -q tests/docs $(ARGS)

secrets: ## what docker-compose.yml mounts, where it is not there yet
	@scripts/secrets

lock: ## make the hashed locks anew (needs uv)
	uv pip compile pyproject.toml --extra avro --extra embedded --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements/dev.lock
	uv pip compile pyproject.toml --extra avro --extra embedded --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements/run.lock
	uv pip compile benchmarks/peers/requirements.in --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements/peers.lock
	echo 'hatchling>=1.27' | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements/build.lock

clean: ## remove what was made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

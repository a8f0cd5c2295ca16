# Every target explains itself: `make help`. All real work happens in Python: tests/run.py, hack/cluster, images/build.py, examples.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CACHE := $(or $(FINETUNE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator)
UV := $(CACHE)/uv/bin/uv
PYTHON ?= python3
RUN := .venv/bin

help: ## this list, and how long a first run takes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  The first demo, test or cluster-up on a machine without Docker compiles Kubernetes, Traefik and llama.cpp: 15 to 20 minutes"
	@echo "  on 2 idle cores, with a line every 20 seconds that says how far it is. A second demo takes about 8 minutes, test 35."

demo: ## from nothing to a tuned model in production that answers; prints each step's time
	@$(PYTHON) -m hack.demo

demo-clean: ## remove all that demo and test made: cluster, engine, images, caches
	@$(PYTHON) -m hack.cluster clean

test: ## everything: lint, types, unit, sim, trainer, api, e2e; leaves nothing running
	@$(PYTHON) -m tests.run

$(UV):
	@$(PYTHON) -m hack.environment uv

environment: $(UV) ## the locked Python environment in .venv
	@$(UV) sync --frozen --all-extras --quiet

fmt: environment ## format and mend what can be mended
	@$(RUN)/ruff format --quiet . && $(RUN)/ruff check --fix --quiet .

lint: environment ## ruff, import layers
	@$(RUN)/ruff format --check --quiet . && $(RUN)/ruff check --quiet . && $(RUN)/lint-imports

type: environment ## mypy --strict
	@$(RUN)/mypy

unit: environment ## pure tests, seconds
	@$(RUN)/pytest -q tests/unit

sim: environment ## the operator over random histories, killed after every write
	@$(RUN)/pytest -q tests/sim

trainer: environment ## the stages on real torch with tiny models
	@$(PYTHON) -m tests.run trainer

api: environment ## CRDs against a real API server
	@$(PYTHON) -m tests.run api

e2e: environment ## whole jobs on a real cluster
	@$(PYTHON) -m tests.run e2e

control: environment ## the example tuned on shuffled answers, which must fail its gate, on a real cluster; 8 minutes
	@$(PYTHON) -m tests.run control

mutants: environment ## faults planted one by one, and which of unit and sim sees each; an hour and more
	@$(RUN)/python -m tests.mutants

generate: environment ## CRDs, schemas, and what the docs show of the code
	@$(RUN)/python -m finetune_operator.crdgen
	@$(RUN)/python -m finetune_api.arguments
	@$(RUN)/python -m hack.docs

golden: environment ## write the golden manifests anew; the diff is the review
	@FINETUNE_WRITE_GOLDEN=1 $(RUN)/pytest -q tests/unit

verify: generate ## nothing generated differs from what is committed
	@git diff --exit-code -- crds api docs charts

images: ## build the images
	@$(PYTHON) images/build.py all

cluster-up: ## a kind cluster with three nodes, test GPUs and a gateway
	@$(PYTHON) -m hack.cluster up

cluster-down: ## take it down; caches stay
	@$(PYTHON) -m hack.cluster down

bench: environment ## benchmarks, as ratios against named peers
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(RUN)/python $$bench; done

.PHONY: help demo demo-clean test environment fmt lint type unit sim trainer api e2e control mutants generate golden verify images cluster-up cluster-down bench

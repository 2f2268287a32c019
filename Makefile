# `make help` explains the targets. Everything runs in .venv, which `make` builds on first use.
SHELL := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo up test conformance check audit bench faults schemathesis clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch alone first: the constraint picks the CPU build where one is at hand.
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Two turns through the whole stack on a real small model, with restarts and webhooks
	$(BIN)/python examples/demo.py

up: $(READY) ## The whole stack on this machine: API, worker, webhook worker, beat, Valkey
	$(BIN)/qwenq up

test: $(READY) ## All tests: SQLite and PostgreSQL, a real Valkey, real workers, the demo model
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

conformance: $(READY) ## The official Python and Node SDKs against a running stack, every answer judged by their types
	$(BIN)/python -m pytest -q -m "" tests/conformance

check: $(READY) audit ## Style, types, import directions, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

audit: $(READY) ## Ask the public database about vulnerabilities of the pinned dependencies
	$(BIN)/python scripts/audit.py constraints.txt

bench: $(READY) ## Decode and prefill speed of the engine on this machine
	$(BIN)/python bench/engine.py

faults: $(READY) ## Break a running service at random for 10 minutes, check every promise (SEED=n, SHORT=1, WITHOUT=fencing)
	$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(SHORT),--short) $(if $(WITHOUT),--without $(WITHOUT))

schemathesis: $(READY) ## Ten minutes of requests drawn from the OpenAPI document (SECONDS=n): no 5xx, nothing undocumented
	QWENQ_SCHEMATHESIS_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -q tests/api/test_openapi.py

bench-cpu: $(READY) ## Decode and prefill on this CPU beside llama.cpp, which is compiled on first use
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python bench/cpu.py

clean: ## Remove the environment and the caches
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache

# Everything there is to do here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
ONCE ?=
SCALE ?=
ROUNDS ?= 5
JDBC ?= 18.3.0
BEGAN := $(shell date +%s)
PACKAGES := connector catalogue policies client tests benchmarks docs/site
# A space is many processes, and a worker may not write what it has compiled: compiled once, each starts a second sooner.
SYNC = VIRTUAL_ENV= $(BIN)/uv sync --quiet --locked --inexact --compile-bytecode --python $(BIN)/python
SITE := connector/help/site/index.html
SITE_SOURCES := mkdocs.yml openapi.yaml connector/settings.py catalogue/settings.py $(shell find docs client/hanse -type f -not -path '*/__pycache__/*')
COMPILE = $(BIN)/python -m compileall -q $(PACKAGES)

.PHONY: help setup setup-dev fmt check lint types imports audit docs help-site screenshots test java test-loaders test-jdbc demo openapi bench bench-dsp bench-forged bench-policies bench-revocation bench-catalogue bench-federated bench-questions bench-stream bench-loader bench-digest tck tck-dcp interop interop-witness crash dist resume-trials soak-stream random-queries random-names random-versions fuzz-arrow random-federated random-streams clean

help: ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or newer as $(PYTHON), came $$($(PYTHON) --version 2>&1); set PYTHON=<a newer one>"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed; on Debian install python3-venv, then run this again"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.run: $(BIN)/uv pyproject.toml client/pyproject.toml uv.lock
	@echo "setting up $(VENV) from uv.lock ..."
	@$(SYNC)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(SYNC) --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(SYNC) --group bench
	@touch $@

# Not `--quiet`: MkDocs would not count warnings then, and a broken link is one.
BUILD_SITE = said=$$(PYTHONPATH=docs/site:. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2>&1) || { echo "$$said"; exit 1; }
$(SITE): $(VENV)/.run $(SITE_SOURCES)
	@$(SYNC) --group docs
	@$(BUILD_SITE)

help-site: $(SITE) ## build the help pages that `hanse docs` and `/help` of a connector serve

setup: $(VENV)/.run $(SITE) ## virtual environment with what the product needs, from the lock file
	@$(COMPILE)

setup-dev: $(VENV)/.dev $(SITE) ## the same, with the tools for tests and checks
	@$(COMPILE)

fmt: setup-dev ## format the code
	@$(BIN)/ruff check --quiet --fix --select I $(PACKAGES) || true
	@$(BIN)/ruff format $(PACKAGES)

random-queries: setup-dev ## N=10000 generated queries against planted secrets (FIRST=0: the first seed)
	@$(BIN)/python -m tests.oracles secrets --count $(or $(N),10000) --first $(or $(FIRST),0)

random-names: setup-dev ## N=20000 generated questions about names against plain DuckDB, and what is recorded of them (FIRST=0: the first seed)
	@$(BIN)/python -m tests.oracles names --count $(or $(N),20000) --first $(or $(FIRST),0)

random-versions: setup-dev ## N=2000 random versions of random tables against whoever subtracts their figures (FIRST=0: the first seed)
	@$(BIN)/python -m tests.oracles versions --count $(or $(N),2000) --first $(or $(FIRST),0)

random-federated: setup-dev ## N=10000 generated questions over three owners against one database (FIRST=0: the first seed)
	@$(BIN)/python -m tests.oracles federated --count $(or $(N),10000) --first $(or $(FIRST),0)

random-streams: setup-dev ## N=2000 random streams of random data and policies against plain DuckDB (FIRST=0: the first seed, KIND: of one kind only, FILES: of such datasets)
	@$(BIN)/python -m tests.oracles streams --count $(or $(N),2000) --first $(or $(FIRST),0) $(if $(KIND),--kind $(KIND)) $(if $(FILES),--files $(FILES))

fuzz-arrow: setup-dev ## 5,000 mutated Arrow streams against the process that reads foreign Arrow
	@$(BIN)/python -m tests.load.fuzz_arrow 5000 7

check: lint types imports audit docs ## format, lint, types, imports, dependencies, docs

lint: setup-dev
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/ruff check $(PACKAGES)

types: setup-dev
	@$(BIN)/mypy

imports: setup-dev
	@$(BIN)/lint-imports

audit: setup-dev
	@$(BIN)/python -m tests.support.audit_dependencies

docs: setup-dev ## check openapi.yaml and the files that pages name, and build the help site: a broken link or anchor fails
	@$(BIN)/python -m tests.support.openapi --check openapi.yaml
	@$(BUILD_SITE)
	@$(BIN)/python -m tests.support.named_files

test: setup-dev ## the whole suite, on SQLite and on a PostgreSQL that it starts for itself, with a Chromium (AT_ONCE=3 files)
	@$(BIN)/python -m tests.support.postgres || true
	@$(BIN)/python -m tests.support.chromium || true
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest tests -n $(or $(AT_ONCE),3) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

$(VENV)-loaders/.made: $(BIN)/uv pyproject.toml client/pyproject.toml uv.lock
	@[ -x $(VENV)-loaders/bin/python ] || $(PYTHON) -m venv $(VENV)-loaders
	@VIRTUAL_ENV= UV_PROJECT_ENVIRONMENT=$(VENV)-loaders $(BIN)/uv sync --quiet --locked --no-default-groups --group loaders
	@touch $@

java:
	@command -v java >/dev/null || { echo "expected Java for Spark; on Debian install openjdk-17-jre-headless"; exit 1; }

test-loaders: java $(VENV)-loaders/.made ## the client's loaders with PyTorch, Hugging Face, Ray and Spark, in an environment of their own (6 GB; Spark wants Java 17)
	@$(VENV)-loaders/bin/pytest tests/frameworks/loaders_*.py

$(VENV)/jdbc/flight-sql-jdbc-driver-$(JDBC).jar:
	@command -v mvn >/dev/null || { echo "expected Maven, which gets the driver; on Debian install maven"; exit 1; }
	@mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy -DoutputDirectory=$(abspath $(@D)) \
		-Dartifact=org.apache.arrow:flight-sql-jdbc-driver:$(JDBC) >/dev/null

test-jdbc: java setup-dev $(VENV)/jdbc/flight-sql-jdbc-driver-$(JDBC).jar ## what BI tools ask, with Arrow's JDBC driver (a JDK of 17 or newer, Maven; JDBC=18.3.0)
	@JDBC_DRIVER=$(abspath $(lastword $^)) $(BIN)/pytest tests/frameworks/jdbc_flight.py

demo: setup ## a data space on this machine: three owners, a catalogue, a gigafactory (ONCE=1: play and end)
	@HANSE_DEMO_BEGAN=$(BEGAN) $(BIN)/hanse demo $(if $(ONCE),--once)

dist: setup-dev help-site ## build both wheels into dist/ and try them in empty environments
	@$(BIN)/python -m tests.support.dist

screenshots: setup-dev ## take the pictures of the help from a demo that runs (a Chromium)
	@$(BIN)/python -m tests.support.screenshots

openapi: setup-dev ## write openapi.yaml from the apps
	@$(BIN)/python -m tests.support.openapi openapi.yaml

tck: setup-dev ## the official Dataspace Protocol conformance kit, against a real connector
	@$(BIN)/python tests/tck/run.py

tck-dcp: setup-dev ## the official Decentralized Claims kit (verifier, holder, issuer), against real processes
	@$(BIN)/python tests/tck/dcp/run.py

interop: setup-dev ## a real Eclipse EDC against a real connector, in both directions, and people at a real Keycloak (a JDK of 17 or newer, Maven, Chromium)
	@$(BIN)/python tests/interop/run.py

interop-witness: setup-dev ## witnesses, a log and two verifiers of other projects against a real connector (Go)
	@$(BIN)/python tests/interop/witness/run.py

crash: setup-dev ## kill connectors at random points of negotiations and transfers, on both databases
	@$(BIN)/python -m tests.load.crash_dsp

resume-trials: setup-dev ## N=1000 random accidents of training jobs: every row once, in the order of the seed (SEED=1)
	@$(BIN)/python -m tests.load.resume_trials --count $(or $(N),1000) --seed $(or $(SEED),1)

soak-stream: setup-dev ## memory while SIZE=10 GB streams, to a slow reader, and to 32 readers at once
	@$(BIN)/python -m benchmarks.soak_stream --size $(or $(SIZE),10)

bench: bench-policies bench-revocation bench-dsp bench-catalogue ## every benchmark, each side by side with what it is compared to

bench-dsp: setup-dev
	@$(BIN)/python -m benchmarks.bench_dsp
	@$(BIN)/python -m benchmarks.bench_credentials

bench-forged: setup-dev ## what 10,000 forged tokens a minute cost a member's negotiations
	@$(BIN)/python -m benchmarks.bench_forged

bench-policies: setup-dev
	@$(BIN)/python -m benchmarks.bench_policies
	@$(BIN)/python -m benchmarks.bench_gate
	@$(BIN)/python -m benchmarks.bench_worker

bench-revocation: setup-dev ## how long a running stream outlives its agreement, 200 times between processes
	@$(BIN)/python -m benchmarks.bench_revocation

bench-catalogue: setup-dev
	@$(BIN)/python -m benchmarks.bench_catalogue 10000

bench-federated: setup-dev ## TPC-H over three connectors against one DuckDB (SF=1: the scale factor, ARGS: see the module)
	@$(BIN)/python -m benchmarks.bench_federated --scale $(or $(SF),1) $(ARGS)

bench-questions: setup-dev ## answers per second as 1, 8 and 64 clients ask one connector about three owners (ARGS: see the module)
	@$(BIN)/python -m benchmarks.bench_questions $(ARGS)

bench-stream: $(VENV)/.bench ## streams beside sockets, Flight, files over HTTP and local readers (15 minutes; SCALE=1 ROUNDS=5)
	@$(BIN)/python -m benchmarks.bench_stream --scale $(or $(SCALE),1) --rounds $(ROUNDS)

bench-digest: setup-dev ## what a reader pays for the digest of a stream, with and without it in turns
	@$(BIN)/python -m benchmarks.bench_digest

bench-loader: $(VENV)-loaders/.made ## PyTorch's loader beside the SDK's plain batches, first and later epochs, in the environment of the loaders (SCALE=0.5 ROUNDS=5)
	@$(VENV)-loaders/bin/python -m benchmarks.bench_loader --scale $(or $(SCALE),0.5) --rounds $(ROUNDS)
	@$(VENV)-loaders/bin/python -m benchmarks.bench_loader --scale $(or $(SCALE),0.5) --rounds $(ROUNDS) --later

clean: ## remove what was built and what the demo wrote
	@rm -rf $(VENV) $(VENV)-loaders var dist connector/help/site .mypy_cache .ruff_cache .pytest_cache .hypothesis

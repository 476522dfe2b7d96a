# A line that begins with a name and two hashes is shown by `make help`.
PAPER ?= rmsnorm
PROFILE ?= cpu
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test slow report lint lock audit clean
.DELETE_ON_ERROR:

help: ## show what make can do
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/make \1|\2/' | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

setup: .venv/ready ## make the environment .venv from requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python -q --compile-bytecode --require-hashes -r requirements.lock
	@rm -rf src/repro.egg-info
	$(BIN)/uv pip install --python $(BIN)/python -q --no-deps -e .
	@touch $@

reproduce: .venv/ready ## measure PAPER=rmsnorm here (PROFILE=cpu), and compare with the committed verdict
	@$(BIN)/repro reproduce $(PAPER) --profile $(PROFILE)

test: .venv/ready ## run the tests of the code
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

slow: .venv/ready ## run the slow tests too: kills, bad input by commands, clusters, downloads
	$(BIN)/python -m pytest -q -m slow

report: .venv/ready ## render all pages that are out of date
	$(BIN)/dvc repro reports/index

lint: .venv/ready ## check style and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/repro index --check

lock: ## renew requirements.lock
	uv pip compile pyproject.toml --extra suite --extra cluster --extra test --universal --python-version 3.11 --generate-hashes -q -o requirements.lock

audit: .venv/ready ## write a bill of materials, and ask for known vulnerabilities
	@mkdir -p .repro
	$(BIN)/uv tool run --from cyclonedx-bom cyclonedx-py environment .venv -o .repro/sbom.json
	$(BIN)/uv tool run pip-audit --require-hashes --disable-pip -r requirements.lock || echo "pip-audit: found something, or its service cannot be reached from here" >&2

clean: ## delete the environment and what was measured here
	rm -rf .venv .repro build src/*.egg-info

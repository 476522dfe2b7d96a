# make reproduce PAPER=rmsnorm [PROFILE=cpu]   measure, judge, render, compare with the committed verdict
# make test                                    the whole test suite
PAPER ?= rmsnorm
PROFILE ?= cpu
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
.PHONY: setup reproduce test report lint lock audit clean
.DELETE_ON_ERROR:

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python -q --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python -q --no-deps -e .
	@touch $@

reproduce: .venv/ready
	@$(BIN)/repro reproduce $(PAPER) --profile $(PROFILE)

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

report: .venv/ready
	$(BIN)/dvc repro reports/index

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/repro index --check

lock:
	uv pip compile pyproject.toml --extra cluster --extra report --extra test --universal --python-version 3.11 --generate-hashes -q -o requirements.lock

audit: .venv/ready
	@mkdir -p .repro
	$(BIN)/uv tool run --from cyclonedx-bom cyclonedx-py environment .venv -o .repro/sbom.json
	$(BIN)/uv tool run pip-audit --require-hashes --disable-pip -r requirements.lock || echo "pip-audit: found something, or its service cannot be reached from here" >&2

clean:
	rm -rf .venv .repro build src/*.egg-info

# make demo and make test set up everything: .venv from requirements.lock, then the work. A second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := uv==0.13.8
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-faults test-flows test-rooms check audit bench lock clean

demo: $(INSTALLED)
	$(BIN)/normascope demo

test: check
	$(BIN)/pytest --numprocesses=auto --maxprocesses=8 --dist=loadscope

# real servers, killed processes, the quick demo, the report in a browser: two groups at a time, for much of it is waited for
SLOW := $(BIN)/pytest -m 'slow or browser'
test-slow: $(INSTALLED)
	$(MAKE) --jobs=2 --output-sync=target test-faults test-flows test-rooms

test-faults: $(INSTALLED)
	$(SLOW) tests/faults tests/deploy

test-flows: $(INSTALLED)
	$(SLOW) tests/flows

test-rooms: $(INSTALLED)
	$(SLOW) --ignore tests/faults --ignore tests/deploy --ignore tests/flows

bench: $(INSTALLED)
	$(BIN)/pytest -s -m benchmark tests/benchmarks/bench_*.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(INSTALLED)
	.ci/audit requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normascope needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

# what is installed and tested here, and of that what the images hold: no test tools
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra server
lock: $(INSTALLED)
	$(LOCK) --group dev pyproject.toml --output-file requirements.lock
	$(LOCK) --no-annotate --constraint requirements.lock pyproject.toml --output-file deploy/image.lock

clean:
	rm -rf $(VENV) build *.egg-info

# Everything runs in .venv, which `setup` makes. Python 3.11 and make are all a fresh machine needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Options of `make speed`, such as OPTIONS="--size paper --record"; see benchmarks/speed/conftest.py.
OPTIONS ?=

# Minutes of `make gpu`: it begins no piece that would end later, and a further call goes on from there.
GPU_MINUTES ?= 25

.PHONY: setup demo test nightly lint docs docs-serve speed gpu audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/pwm_mt80.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# TorchRL imports Ray where it is there, for half a second a process: only here.
nightly: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

speed: setup
	$(BIN)/python -m pytest benchmarks/speed --benchmark-only --benchmark-disable-gc -p no:randomly -s $(OPTIONS)

# Needs a network, and fails without one rather than finding nothing. pip-audit is not one of the extras: nothing else uses it.
audit:
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

gpu: setup
	$(BIN)/python -m benchmarks.gpu --minutes $(GPU_MINUTES)

clean:
	rm -rf $(VENV) .venv-audit build site *.egg-info

# `make demo`: the main job on the bundled model.  `make test`: lint, types, tests.  Both set up what they need.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := test
.PHONY: demo test lint clean

# One stamp per extra: .venv/train runs everything, .venv/dev checks it as well.
.venv/%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lm-envs needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: .venv/train
	$(BIN)/python -m agents train --env TextGen-v0 --algo ppo --out runs/demo --overwrite

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test: .venv/dev lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv runs dist build

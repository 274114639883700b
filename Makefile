# `make repro` and `make test` each set up what they need from a fresh clone. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The stages of dvc.yaml call `python` and `wimfris` by name: they must be the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo check test test-slow gpu lint docs repro verify repository
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-17s%s\n", $$1, $$2 }'

setup: $(STAMP) ## virtual environment in .venv and the pinned install; PYTHON=... names another interpreter (3.11 or newer)

demo: setup ## try the shipped model: three scenes, its scores on val, what `make repro` adds; under 2 minutes
	@$(BIN)/wimfris demo

# `wimfris matrix` trains several runs at once and shows the table of `full` first; `dvc repro` records them and makes the report.
repro: repository setup ## set up, train what is missing, make the report, print the results; JOBS=... sets the runs at once
	$(BIN)/wimfris matrix $(if $(JOBS),--jobs $(JOBS))
	$(BIN)/dvc repro
	@$(BIN)/wimfris report
	@$(BIN)/wimfris reproduction

verify: repository setup ## train full-0 again without the store, compare it with the evidence; RUNS="full-0 none-1" names others
	$(BIN)/wimfris verify $(foreach run,$(RUNS),--run $(run))

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: setup ## lint and the fast tests, golden smoke runs among them: 90 seconds on 2 cores, 2 minutes at first
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(PYTEST) -m "not slow and not long" -q --ignore=tests/slow

test: setup ## the test suite: 6 to 12 minutes on 2 cores
	$(PYTEST) -m "not long"

test-slow: setup ## the rest: the pipeline by DVC, kills, long simulations, browsers
	$(PYTEST) -m long

gpu: setup ## on a machine with a GPU: a smoke run, the GPU tests, all benchmarks; leaves CSV and JSON in benchmarks/
	$(BIN)/python benchmarks/gpu.py

lint: setup ## linter, formatter check and type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: setup ## build the documentation site in site/, with all links checked
	$(BIN)/mkdocs build --strict --quiet

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: there is no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$($(PYTHON) --version) is too old, 3.11 or newer is needed; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV): some minutes, most of it downloads"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "Installed. To work in it: . $(BIN)/activate"

# DVC and the run manifests need a commit to name; a downloaded zip has none.
repository:
	@git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || \
	  { echo "make: this folder is not a git repository with a commit; run: git init && git add -A && git commit -m start" >&2; exit 1; }

# Every target does its own set-up: a virtual environment in .venv with the
# versions of constraints/pins.txt. Repeated runs skip what is up to date.
#
#   make demo PYTHON=python3.12            another interpreter
#   make test PYTEST_ARGS="-k hessian -x"  other options for pytest

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal

# The matrices of tests and examples are tiny. More threads are no faster, and many
# times slower as soon as another program wants the same cores.
export OMP_NUM_THREADS ?= 1

PINS := constraints/pins.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MINIMUM := 3.10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.ready-examples ## curvature of a network trained on digits, with a figure
	@$(BIN)/python examples/quickstart.py

.PHONY: test
test: $(VENV)/.ready-test ## the whole test suite, doctests and README included
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: sweep
sweep: $(VENV)/.ready-test ## every layer and function of torch in every way; takes long
	@CURVOP_SWEEP=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/sweep

.PHONY: examples
examples: $(VENV)/.ready-test ## every example, and every snippet of the documentation
	@CURVOP_EXAMPLES=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/test_examples.py tests/test_documentation.py

.PHONY: migration
migration: $(VENV)/.ready-test $(VENV)/.ready-migration ## documentation beside other libraries: same numbers
	@CURVOP_PEERS=1 CURVOP_EXAMPLES=1 $(BIN)/python -m pytest -q tests/test_documentation.py -k migrate

.PHONY: bench
bench: $(VENV)/.ready-bench ## speed and memory beside other libraries; takes an hour
	@$(BIN)/python -W ignore benchmarks/run.py
	@for part in solvers spectra estimators direct lowrank diagonals kfac monitor; do \
	  $(BIN)/python -W ignore benchmarks/$$part.py --write || exit 1; done

.PHONY: lint
lint: $(VENV)/.ready-dev ## style and formatting, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(VENV)/.ready-dev ## mend style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.ready-dev ## static types of src
	$(BIN)/mypy

.PHONY: docs
docs: $(VENV)/.ready-docs ## build the documentation into site/
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs site
	@echo "built site/index.html"

.PHONY: all
all: lint types docs test demo ## everything above

.PHONY: clean
clean: ## remove the environment, caches and everything written
	rm -rf $(VENV) build dist site examples/output \
	  .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra: `make demo` does not wait for the test tools.
$(VENV)/.ready-%: $(VENV)/.created pyproject.toml $(PINS)
	@echo "curvop: installing the '$*' packages into $(VENV) (the first time takes minutes)"
	@$(PIP) install -c $(PINS) editables hatchling
	@$(PIP) install -c $(PINS) --no-build-isolation --editable '.[$*]'
	@touch $@

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "curvop: no '$(PYTHON)' on the PATH; install Python >= $(MINIMUM) or say PYTHON=/path/to/python3"; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' || { \
	  echo "curvop: needs Python >= $(MINIMUM), '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); say PYTHON=/path/to/a/newer/python3"; \
	  exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' >/dev/null 2>&1 || { \
	  echo "curvop: '$(PYTHON)' cannot make virtual environments (no venv or ensurepip);"; \
	  echo "        on Debian and Ubuntu: apt-get install python3-venv"; \
	  exit 1; }
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch $@

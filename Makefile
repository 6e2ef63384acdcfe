# Two commands matter: `make quickstart` and `make test`. Each makes its own environment first.
#
#   PYTHON=python3.12      the Python to make the environment with
#   VENV=/big/disk/venv    where the environment goes
#   PIP_FLAGS='...'        more arguments for pip
#   WORKERS=4              processes that run the tests

VENV ?= .venv
PYTHON ?= $(shell sh tools/find_python.sh)
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
# Not empty when the environment is missing, broken (its Python was removed) or of another folder.
STALE := $(shell "$(BIN)/python" tools/is_current.py 2>/dev/null || echo stale)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test lint types unit fast pages pictures docs site format clean distclean FORCE

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
		while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

quickstart: $(RUN)  ## Install, train small networks in four ways, show what each gained and cost
	"$(BIN)/python" -m conadv quickstart $(ARGS)

test: lint types unit  ## Install, then every check: lint, types, tests, documentation

lint: $(DEV)  ## Lint and formatting
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .

types: $(DEV)  ## Strict types of the package
	"$(BIN)/python" -m mypy

unit: $(DEV)  ## All tests, with the code of the documentation and the examples
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

fast: $(DEV)  ## The tests that take less than a few seconds each
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

pages: $(RUN)  ## Make the pages of the studies in results/: results/*/report.html
	@for study in results/*/report.md; do \
		"$(BIN)/python" -m conadv report "$${study%/report.md}" || exit 1; done

pictures: $(DEV)  ## Draw the pictures of the documentation from results/
	"$(BIN)/python" tools/front_pictures.py

docs: $(DEV)  ## Only the code and the links of the documentation
	"$(BIN)/python" -m pytest -n $(WORKERS) tests/test_docs.py $(ARGS)

site: $(DEV)  ## The documentation as a site, with a reference of all names: build/site/index.html
	"$(BIN)/python" tools/make_site.py $(ARGS)

format: $(DEV)  ## Put the code into the project's format
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

clean:  ## Remove caches and builds; runs and the environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + \
		2>/dev/null || true

distclean: clean  ## Remove the environment too
	@if test -e "$(VENV)/pyvenv.cfg" || test -e "$(VENV)/.made-by-conadv"; then rm -rf "$(VENV)"; \
		else test ! -e "$(VENV)" || { echo "$(VENV) is no virtual environment: left alone" >&2; exit 1; }; fi

$(RUN): EXTRAS := train,report
$(DEV): EXTRAS := dev
$(RUN) $(DEV): pyproject.toml $(if $(STALE),FORCE)
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "conadv cannot be set up here: there is no $(PYTHON) on the PATH." >&2; \
		echo "Install Python 3.11 or newer (Debian: apt install python3 python3-venv)," >&2; \
		echo "or name it: make test PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/install.py --venv "$(VENV)" --extras "$(EXTRAS)"

FORCE:

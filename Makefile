# `make demo` and `make test` need Python 3.11 or newer and nothing else: they build .venv themselves.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test suite slow soak lint site clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/sentei demo

# Two processes with one thread each. The tests of a file stay together, because they share what they train, and files in
# their order: sorted by the number of their tests, the longest would come last. A process that dies ends the tests: with
# a new one in its place pytest-xdist may wait for ever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

# mypy keeps one processor busy for more than a minute, so it runs beside the tests.
test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory --jobs=2 lint suite

suite: $(VENV)/.installed-dev
	@$(PYTEST)

slow: $(VENV)/.installed-dev
	@$(PYTEST) -m 'slow or hypothesis' --hypothesis-profile=many

# Kills, damaged files, full disks and lost workers, about half an hour; see docs/reliability.md.
soak: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

# The documentation as a site, in build/site.
site: $(VENV)/.installed-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps are written last, so an install that fails is tried again. pip talks only to a terminal. It compiles nothing:
# half of an install would go into modules that nobody imports, and the others are compiled when they are first imported.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sentei needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(VENV)/.installed $(VENV)/.installed-dev
	@echo "Setting up $(VENV) (once; PyTorch is a large download) ..."
	@$(PYTHON) -m venv $(VENV)
	@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-compile $$quiet --editable '$(1)'
endef

$(VENV)/.installed: pyproject.toml
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[dev])
	@touch $(VENV)/.installed $@

# Every target builds what it needs: .venv from the lock files, from any Python 3.11 or newer and a package index.
# The path of this folder must not contain spaces (a limit of make).

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
TESTS ?=

.PHONY: help demo test check test-real test-run bench format lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       compare real published models (downloads about 200 MB, once)"
	@echo "make test       all tests that need no network"
	@echo "make check      format, lint, types, layers, documentation"
	@echo "make test-real  tests on published models (downloads them, once)"
	@echo "make test-run   convert, load with transformers, compare logits (installs torch in .venv-run)"
	@echo "make bench      the tables of benchmarks/README.md"
	@echo "make format     rewrite the sources in the agreed format"
	@echo "make lock       renew the lock files from pyproject.toml"
	@echo "make clean      remove .venv, caches and build products"

demo: $(RUN)
	@$(BIN)/drupe demo

test: $(DEV)
	@echo "make: running the tests (no network needed)"
	@$(BIN)/python -m pytest $(TESTS)

check: $(DEV)
	@echo "make: format"
	@$(BIN)/ruff format --check --output-format concise . || { echo "make: run 'make format'" >&2; exit 1; }
	@echo "make: lint"
	@$(BIN)/ruff check --quiet .
	@echo "make: types (mypy --strict)"
	@$(BIN)/mypy --strict
	@echo "make: layers, documentation, packaging"
	@$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py tests/test_package.py

test-real: $(DEV)
	@echo "make: tests on published models; the first run downloads them"
	@$(BIN)/python -m pytest -m real $(TESTS)

test-run: $(DEV)
	@test -x $(VENV)-run/bin/python || $(BIN)/python -m venv $(VENV)-run
	@echo "make: torch and transformers; the first run downloads them"
	@$(VENV)-run/bin/python -m pip install -q -e '.[dev,train]'
	@$(VENV)-run/bin/python -m pytest tests/convert $(TESTS)

bench: $(DEV)
	@$(BIN)/python benchmarks/run.py

format: $(DEV)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The environment. $(BIN)/python stands for an interpreter that is new enough; $(RUN) and $(DEV) are stamps.
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "make: creating $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "make: no virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "make: Python 3.11 or newer was not found; install it, or run: make PYTHON=/path/to/python" >&2; exit 1

$(RUN): requirements.lock pyproject.toml | $(BIN)/python
	@echo "make: installing what Drupe needs to run ($<)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements-dev.lock pyproject.toml | $(BIN)/python
	@echo "make: installing what Drupe and its tests need ($<)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(RUN)

# The dev lock is bound to the versions of the other one, so that both describe one environment.
LOCK := --quiet --generate-hashes --strip-extras --allow-unsafe --build-deps-for editable --build-deps-for wheel \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options

lock: $(DEV)
	@echo "make: resolving (some minutes)"
	@$(BIN)/python -m venv build/lock
	@build/lock/bin/pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	@CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/pip-compile $(LOCK) -o requirements.lock pyproject.toml
	@CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/pip-compile $(LOCK) --extra dev \
	  --constraint requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) $(VENV)-run build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

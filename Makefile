# The two commands of the README, and what CI and developers run.
# .venv holds what a user and a developer need; nothing outside it is touched. With another
# PYTHON than the last time it is made anew; VENV names another folder, and WITH what else
# pip is to install there: make test PYTHON=python3.13 VENV=.venv-3.13 WITH="'sqlalchemy<2.1'"

PYTHON ?= python3
VENV := .venv
WITH :=
# make test COVERAGE=yes measures it, as CI does; that takes half as long again
COVERAGE :=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())')

# the tests start hundreds of processes: none of them compiles again what another one has
unexport PYTHONDONTWRITEBYTECODE

# make adapters UPGRADE=yes tests them on the engines' newest releases of today, not of the day they were first fetched
UPGRADE :=

.PHONY: demo test test-oldest e2e adapters bench lint format clean

demo: $(STAMP)
	@$(BIN)/constellation-otel demo

test: $(STAMP)
	$(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/engines --numprocesses=6 --dist=worksteal$(if $(COVERAGE), --cov --cov-report=term --cov-fail-under=100)

# The same with every dependency at the lower bound that pyproject.toml gives it.
test-oldest:
	$(MAKE) test VENV=.venv-oldest WITH="$$($(PYTHON) .ci/oldest)"

e2e: $(STAMP)
	tests/e2e/peers/get collector jaeger kafka postgres pgbouncer chromium
	$(BIN)/python -m pytest tests/e2e

# Each engine in virtual environments of its own, in the cache of the peers, as their pins collide.
adapters:
	$(PYTHON) tests/engines/run $(if $(UPGRADE),--upgrade)

bench: $(STAMP)
	$(BIN)/python -m bench

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "constellation-otel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) \
	  || { echo "python3-venv is missing: apt-get install python3-venv (as root)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[all,demo]' --group test --group lint $(WITH)
	@touch $(STAMP)

clean:
	rm -rf .venv .venv-* .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

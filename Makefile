# Development commands. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# uv from PATH when it is there, else from a small environment of its own.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# The first Python that is new enough: on old systems that is not python3. It prints its real path,
# because uv would recreate .venv each time for the path of a shim.
WHERE := import os, sys; sys.exit(1) if sys.version_info < (3, 11) else print(os.path.realpath(sys.executable))
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$each -c '$(WHERE)' 2>/dev/null && break; done)
RUN := .venv/bin/

.PHONY: help python setup packages demo run doctor backfill test simulate check lint-deploy image-steps fix coverage real-servers test-real power-cuts storm trace mutants mutants-simulation screenshots bench bench-smoke soak clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; set PYTHON=… to one" >&2; exit 1; }

.uv/bin/uv: | python
	@echo "Installing uv into .uv"
	@# Like `python -m venv .uv`, but without a traceback on Ctrl-C.
	@$(PYTHON) -c 'import signal, venv; signal.signal(signal.SIGINT, signal.SIG_DFL); venv.main([".uv"])'
	@.uv/bin/pip install --quiet --disable-pip-version-check uv

ifeq ($(UV),.uv/bin/uv)
setup packages: .uv/bin/uv
endif
# uv shows its progress the first time, when there is much to install.
SYNC = test -d .venv || echo "Installing Python packages into .venv"; \
  $(UV) sync --frozen $(if $(wildcard .venv),--quiet)
setup: python
	@$(SYNC) --python $(PYTHON)

# What running the service needs, and no tools: it does not remove those that are there.
packages: python
	@$(SYNC) --no-dev --inexact --python $(PYTHON)

demo: packages ## Run everything against a simulated home, with the embedded store
	@exec $(RUN)python -m app demo

run: packages ## Run the service with the settings of .env
	@exec $(RUN)python -m app run

doctor: packages ## Check settings, dependencies and disk, and explain how to fix problems
	@exec $(RUN)python -m app doctor

backfill: packages ## Read history back: make backfill SINCE=yesterday [UNTIL=…] [ENTITIES="…"]
	@exec $(RUN)python -m app backfill --since "$(SINCE)" $(if $(UNTIL),--until "$(UNTIL)") \
	  $(if $(ENTITIES),--entities $(ENTITIES))

# More workers than cores: most service tests wait for a process or a timer. Native tracebacks,
# because parsing sources for the others fails in CPython 3.11 (its issue 106905).
WORKERS ?= 4
PYTEST := pytest

# The workers share the bytecode of the tests, even where the environment forbids writing any.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup ## Run all unit, integration and service tests
	$(RUN)$(PYTEST) -n $(WORKERS) --dist worksteal --tb=native tests/service tests/integration tests/simulation tests/unit

simulate: setup ## Simulate hours of faults in minutes: make simulate [HOURS=…] [SEED=…] [FIRST=…]
	$(RUN)python -m tests.simulation $(if $(HOURS),--hours $(HOURS)) $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST))

check: setup lint-deploy ## Check format, lint, types, layers, and what deploys it
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports

# In a temporary environment: only this target needs these packages.
lint-deploy: setup ## Check the Dockerfile, compose.yaml, the manifests and the unit
	@$(UV) run --frozen --quiet --isolated --only-group deploy --python $(PYTHON) python docker/lint.py

image-steps: setup ## Run the Dockerfile's install steps without Docker, and print their time
	@$(RUN)python -m tests.service.image $(IMAGE_PYTHON)

fix: setup ## Format, and fix what can be fixed automatically
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

coverage: setup ## Run the tests with branch coverage (at least 95 %)
	$(RUN)coverage erase
	@$(MAKE) --no-print-directory test PYTEST="coverage run -m pytest"
	$(RUN)coverage combine --quiet
	$(RUN)coverage report

real-servers: setup ## Install the real servers that test-real needs
	bash tests/real/install.sh

test-real: setup ## Run the service against a real Home Assistant and real databases
	$(RUN)pytest tests/real

power-cuts: setup ## Start on states that a power cut leaves: make power-cuts COUNT=1000 [SEED=…]
	$(RUN)pytest -n 2 --dist worksteal --tb=native tests/power_cuts

storm: setup ## Make real servers and links fail at random: make storm MINUTES=30 [SEED=…]
	MINUTES=$(or $(MINUTES),30) $(RUN)pytest tests/real/test_real_storm.py

trace: setup ## Count the functions and files that one live event passes
	@$(RUN)python -m tests.trace_event

mutants: setup ## Change four pure modules in every small way, and list what no test finds (an hour)
	$(RUN)mutmut run
	$(RUN)mutmut results

mutants-simulation: setup ## List faults of the service that no simulated world finds [JOBS=…] [RESULTS=…]
	$(RUN)python -m tests.simulation.mutants $(if $(JOBS),--jobs $(JOBS)) $(if $(RESULTS),--results $(RESULTS))

screenshots: setup ## Take the screenshots of the dashboard for the README
	$(RUN)python -m tests.real.screenshots

bench: setup ## Measure everything; prints tables
	$(RUN)python -m benchmarks

bench-smoke: setup ## Measure briefly, and fail where a generous ratio is missed
	$(RUN)python -m benchmarks --smoke

soak: setup ## Make everything fail at random: make soak MINUTES=20
	$(RUN)python -m benchmarks.soak --minutes $(or $(MINUTES),20)

clean: ## Remove everything that make created
	rm -rf mutants .venv .uv .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

# `make demo` shows the package at work, `make test` tests it. Both set up everything that they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python of this machine that is 3.11 or newer; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
AIRFLOW ?= 3.3.2
VENV ?= .venv
# INSTALLER=pip installs without uv.
INSTALLER ?= uv
PY := $(VENV)/bin/python
TAG = $(shell "$(PYTHON)" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS = constraints/constraints-$(AIRFLOW)-$(TAG).txt
READY := $(VENV)/.ready

.PHONY: help install lint types test long receiver chaos fleet prove demo standalone docs readme browser matrix bench \
	bench-receiver bench-small bench-keep-alive bench-page bench-reports bench-catch-up bench-relay mutants \
	constraints clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 23

install: $(READY)  ## Set up the virtual environment

$(READY): pyproject.toml $(wildcard constraints/*.txt)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and was not found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -f "$(CONSTRAINTS)" || { echo "No $(CONSTRAINTS): Airflow $(AIRFLOW) is not supported on this Python. See constraints/." >&2; exit 1; }
	@echo "== Setting up $(VENV): Airflow $(AIRFLOW) for $$("$(PYTHON)" --version), once =="
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@if [ "$(INSTALLER)" = uv ] && { [ -x $(VENV)/bin/uv ] || $(PY) -m pip install --quiet uv; }; then \
		$(VENV)/bin/uv pip install --python $(PY) -c $(CONSTRAINTS) --group dev -e '.[relay,sandbox,storage]'; \
	else \
		echo "Installing with pip, without uv. This takes a minute"; \
		$(PY) -m pip install --quiet --upgrade 'pip>=25.1' && \
		$(PY) -m pip install -c $(CONSTRAINTS) --group dev -e '.[relay,sandbox,storage]'; \
	fi
	@touch $@

lint: $(READY)  ## Check the style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)  ## Check the types
	$(VENV)/bin/mypy

# Four processes: some tests wait. All tests of a file run in one process, because they share what is slow to set up.
# With bytecode files, which some containers switch off: without, each process compiles all tests anew.
# The types are checked beside the first tests, which start servers and leave a core idle.
test: lint  ## Check style and types, and run all tests but the long ones; FULL=1 takes every order of rows
	@$(VENV)/bin/mypy & types=$$!; \
	PYTHONDONTWRITEBYTECODE= $(if $(FULL),BANKCONNECT_TESTS=full )$(PY) -m pytest -n 4 --dist loadfile; \
	wait $$types || { echo "mypy has found errors: see above, before or between the tests" >&2; exit 1; }

long: $(READY)  ## Run the tests that make test leaves out because they take long (5 min)
	$(PY) -m pytest -n 2 --dist loadfile -m long --deselect tests/receiver/test_relay.py --deselect tests/system/test_receiver.py --deselect tests/system/test_standalone.py

receiver: $(READY)  ## Test the webhook receiver under load, in a whole Airflow on PostgreSQL (10 min)
	BANKCONNECT_RECEIVER=full $(PY) -m pytest -m "" tests/receiver/test_relay.py tests/system/test_receiver.py tests/system/test_standalone.py

chaos: $(READY)  ## Run 200 waits in a whole Airflow while its processes are killed one after another (15 min)
	@$(PY) -W ignore scripts/chaos.py

fleet: $(READY)  ## Run 300 customers in a distributed Airflow while its processes are killed (20 min); QUICK=1 (4 min)
	@if [ -x $(VENV)/bin/uv ]; then $(VENV)/bin/uv pip install --quiet --python $(PY) -c $(CONSTRAINTS) --group fleet; \
	else $(PY) -m pip install --quiet -c $(CONSTRAINTS) --group fleet; fi
	@$(PY) -W ignore scripts/fleet.py $(if $(QUICK),--quick) $(if $(CUSTOMERS),--customers $(CUSTOMERS))

prove: $(READY)  ## Run 10,000 random schedules of faults and compare the verdicts (minutes); SEED=123 repeats one
	@$(PY) -W ignore tests/prove $(if $(SEED),--seed $(SEED))

demo: $(READY)  ## Show a gate in a real Airflow, against a local sandbox (1 min)
	@$(PY) -W ignore scripts/demo.py

standalone: $(READY)  ## Run a whole Airflow with the webhook receiver and simulated customers, until Ctrl-C; PORT=8081 EVERY=5 RELAY=1
	@$(PY) -W ignore scripts/standalone.py $(if $(PORT),--port $(PORT)) $(if $(EVERY),--every $(EVERY)) $(if $(RELAY),--relay)

docs: $(READY)  ## Build the documentation in docs/_build/html; warnings are errors
	$(PY) -m sphinx -W --keep-going -n -q -a -b html docs docs/_build/html

readme: $(READY)  ## Run the commands of README.md and the quick start in a new environment (6 min)
	@$(PY) scripts/readme.py

browser: $(READY)  ## Test the connection form and the page in Chromium (4 min); FAB=1 with FAB; pictures in .cache/browser
	$(if $(FAB),$(if $(wildcard $(VENV)/bin/uv),$(VENV)/bin/uv pip install --python $(PY),$(PY) -m pip install) \
		--quiet -c $(CONSTRAINTS) apache-airflow-providers-fab)
	$(PY) -m pytest -m browser tests/browser

matrix:  ## Test the wheel on all supported Airflows and Pythons (75 min); ONLY="2.11.2-py311 3.1.8-py312" QUICK=1 FULL=1
	"$(PYTHON)" scripts/matrix.py $(foreach pair,$(ONLY),--only $(pair)) $(if $(QUICK),--quick) $(if $(FULL),--full)

bench: $(READY)  ## Measure what waits cost a triggerer, compared with other providers (16 min); QUICK=1 (2 min)
	@$(PY) benchmarks/waits.py $(if $(QUICK),--quick)

bench-receiver: $(READY)  ## Measure how fast webhooks become runs, and how many at once (15 min); QUICK=1 (2 min)
	@$(PY) benchmarks/receiver.py $(if $(QUICK),--quick)

bench-small: $(READY)  ## Measure waits for many transactions against another checkout (8 min); BASE=DIR QUICK=1 (2 min)
	@$(PY) benchmarks/small_answers.py --base "$(BASE)" $(if $(QUICK),--quick)

bench-keep-alive: $(READY)  ## Measure what new connections cost a wait, against another checkout (5 min); BASE=DIR QUICK=1
	@$(PY) benchmarks/keep_alive.py --base "$(BASE)" $(if $(QUICK),--quick)

bench-page: $(READY)  ## Measure the page in Airflow's UI on PostgreSQL, beside Airflow's own list of events (10 min); QUICK=1
	@$(PY) benchmarks/page.py $(if $(QUICK),--quick)

bench-reports: $(READY)  ## Measure how fast reports are written to a folder, beside a loop (6 min); QUICK=1
	@$(PY) -W ignore benchmarks/reports.py $(if $(QUICK),--quick)

bench-relay: $(READY)  ## Measure how fast the relay takes webhooks, and Airflow gets them from it (10 min); QUICK=1 (4 min)
	@$(PY) benchmarks/relay.py $(if $(QUICK),--quick)

bench-catch-up: $(READY)  ## Measure how fast 10,000 links are caught up on, beside a loop (6 min); LATENCY=50 QUICK=1 (2 min)
	@$(PY) -W ignore benchmarks/catch_up.py $(if $(LATENCY),--latency $(LATENCY)) $(if $(QUICK),--quick)

mutants: $(READY)  ## Measure how many planted defects the unit tests find (an hour)
	@if [ -x $(VENV)/bin/uv ]; then $(VENV)/bin/uv pip install --quiet --python $(PY) -c $(CONSTRAINTS) --group mutants; \
	else $(PY) -m pip install --quiet -c $(CONSTRAINTS) --group mutants; fi
	rm -rf mutants
	$(VENV)/bin/mutmut run --max-children 2
	$(VENV)/bin/mutmut results
	$(VENV)/bin/mutmut export-cicd-stats
	@$(PY) -c "import json; s = json.load(open('mutants/mutmut-cicd-stats.json')); \
	print(f'{s[\"killed\"]} of {s[\"total\"]} killed: {s[\"killed\"] / s[\"total\"]:.1%}'); \
	raise SystemExit(s['killed'] < 0.95 * s['total'])"

$(VENV)/bin/uv:
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PY) -m pip install --quiet uv

constraints: $(VENV)/bin/uv  ## Update constraints/ after a change of pyproject.toml; other pins stay
	for file in constraints/constraints-*.txt; do \
		minor=$$(sed -E 's/.*-py3([0-9]+).txt/\1/' <<< $$file); grep -v '^docutils==' $$file > $$file.known; \
		$(VENV)/bin/uv pip compile pyproject.toml --quiet --extra relay --extra sandbox --extra storage --group dev \
			--group fleet --group kubernetes --python-version 3.$$minor \
			-c $$file.known --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o $$file; \
		rm $$file.known; \
	done

clean:  ## Remove everything that make has created
	rm -rf .venv .demo .standalone .cache docs/_build mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

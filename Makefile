# Two commands matter: `make demo` shows it, `make test` proves it. Both do all their set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python from 3.11 on that this machine has; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
AIRFLOW ?= 3.3.2
VENV ?= .venv
# INSTALLER=pip does without uv.
INSTALLER ?= uv
PY := $(VENV)/bin/python
TAG = $(shell "$(PYTHON)" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS = constraints/constraints-$(AIRFLOW)-$(TAG).txt
READY := $(VENV)/.ready

.PHONY: help install lint types test doorbell chaos standalone prove demo docs readme browser matrix bench bench-doorbell mutants \
	constraints clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

install: $(READY)  ## The virtual environment, with everything in it

$(READY): pyproject.toml $(wildcard constraints/*.txt)
	@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or newer; none was found. Say where: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -f "$(CONSTRAINTS)" || { echo "No $(CONSTRAINTS): Airflow $(AIRFLOW) is not supported on this Python. See constraints/." >&2; exit 1; }
	@echo "== Setting up $(VENV): Airflow $(AIRFLOW) for $$("$(PYTHON)" --version), once =="
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@if [ "$(INSTALLER)" = uv ] && { [ -x $(VENV)/bin/uv ] || $(PY) -m pip install --quiet uv; }; then \
		$(VENV)/bin/uv pip install --python $(PY) -c $(CONSTRAINTS) --group dev -e '.[sandbox]'; \
	else \
		echo "uv is not to be had: pip does it, and takes a minute"; \
		$(PY) -m pip install --quiet --upgrade 'pip>=25.1' && \
		$(PY) -m pip install -c $(CONSTRAINTS) --group dev -e '.[sandbox]'; \
	fi
	@touch $@

lint: $(READY)  ## Style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)  ## Types, strictly
	$(VENV)/bin/mypy

# Two at once: most tests wait for something. A file stays together, for it shares what is slow to set up.
test: lint types  ## Style, types and every test
	$(PY) -m pytest -n 2 --dist loadfile

doorbell: $(READY)  ## The doorbell on a busy day: a whole Airflow on PostgreSQL, fifty customers at once, ten kills: ten minutes
	BANKCONNECT_DOORBELL=full $(PY) -m pytest -m "" tests/system/test_doorbell.py tests/system/test_standalone.py

chaos: $(READY)  ## Waits in a whole Airflow whose processes are killed one after another: a quarter of an hour
	@$(PY) -W ignore scripts/chaos.py

prove: $(READY)  ## The same verdicts whatever happens: 10,000 schedules of faults, minutes; SEED=123 plays one again
	@$(PY) -W ignore tests/prove $(if $(SEED),--seed $(SEED))

demo: $(READY)  ## BankConnect played here, and a real Airflow that registers, waits and works
	@$(PY) -W ignore scripts/demo.py

standalone: $(READY)  ## A whole Airflow with the doorbell, and customers who ring it, until Ctrl-C; PORT=8081 EVERY=5
	@$(PY) -W ignore scripts/standalone.py $(if $(PORT),--port $(PORT)) $(if $(EVERY),--every $(EVERY))

docs: $(READY)  ## The documentation, strictly, into docs/_build/html
	$(PY) -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

readme: $(READY)  ## README.md and nothing else, in a bare environment: its blocks, and a gate in its DAG: four minutes
	@$(PY) scripts/readme.py

browser: $(READY)  ## The connection form in a real Chromium; pictures in .cache/browser
	$(PY) -m pytest tests/browser

matrix:  ## The wheel beside every supported Airflow and Python: an hour and a quarter; ONLY="2.11.2-py311 3.1.8-py312" QUICK=1 for less, FULL=1 for more
	"$(PYTHON)" scripts/matrix.py $(foreach pair,$(ONLY),--only $(pair)) $(if $(QUICK),--quick) $(if $(FULL),--full)

bench: $(READY)  ## What waits cost a real triggerer, ours and others': sixteen minutes; QUICK=1: about two
	@$(PY) benchmarks/waits.py $(if $(QUICK),--quick)

bench-doorbell: $(READY)  ## How fast a webhook becomes a run, and how many at once: a quarter of an hour; QUICK=1: about two minutes
	@$(PY) benchmarks/doorbell.py $(if $(QUICK),--quick)

mutants: $(READY)  ## How many planted defects in the protocol and the verdict the unit tests find: six minutes
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

constraints: $(VENV)/bin/uv  ## The constraint files anew: what pyproject.toml declares now, the rest as it is
	for file in constraints/constraints-*.txt; do \
		minor=$$(sed -E 's/.*-py3([0-9]+).txt/\1/' <<< $$file); grep -v '^docutils==' $$file > $$file.known; \
		$(VENV)/bin/uv pip compile pyproject.toml --quiet --extra sandbox --group dev --python-version 3.$$minor \
			-c $$file.known --no-header --no-annotate --no-emit-index-url --no-emit-find-links -o $$file; \
		rm $$file.known; \
	done

clean:  ## Away with all that make made
	rm -rf .venv .demo .standalone .cache docs/_build mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build

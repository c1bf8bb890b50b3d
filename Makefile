# Everything runs in .venv, made on first use and again when pyproject.toml or constraints.txt change.
# Another interpreter: make test PYTHON=python3.12 (delete .venv first if it exists).

SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python python3.11 python3.12 python3.13 python3.14; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench coverage wheel clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

setup: $(STAMP)  ## make .venv with prunec (editable) and what it is tested with

demo: $(STAMP)  ## compress real models in a few minutes and print what was gained
	$(RUN) benchmarks/demo.py

test: $(STAMP)  ## run the test suite in two processes; ARGS='-m slow' the slow tests, which it leaves out
	$(RUN) -P -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

lint: $(STAMP)  ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

bench: $(STAMP)  ## measure against the peers; ARGS='speedup' one of them, ARGS='gpu' on a CUDA device
	$(RUN) benchmarks/run.py $(ARGS)

coverage: $(STAMP)  ## compile every architecture of transformers; writes docs/coverage.md
	$(RUN) benchmarks/coverage.py $(ARGS)

wheel: $(STAMP)  ## build the wheel into dist/
	rm -rf build dist
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build

clean:  ## remove .venv, .venv-wheel, build/ and dist/
	rm -rf $(VENV) .venv-wheel build dist

# torch goes first and alone: a build of the same version that is already at hand (a CPU-only one,
# say) satisfies the pin, and the rest then finds torch installed.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "prunec needs Python 3.11 or newer and found none:" \
		"install one, or name it with PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "prunec needs Python 3.11 or newer, and $(PYTHON) is" \
		"not: name another with PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment: install its venv module" \
		"(python3-venv on Debian and Ubuntu)" >&2; exit 1; }
	@$(RUN) -c '$(SUITABLE)' || { echo "$(VENV) is of a Python older than 3.11: make clean" >&2; \
		exit 1; }
	$(RUN) -m pip install --quiet -c constraints.txt torch
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[bench,data,demo,test]'
	@touch $(STAMP)

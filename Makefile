# What one does here. BIN names another environment: make check BIN=/path/to/venv/bin
BIN ?= .venv/bin
PYTHON ?= python3
export OMP_NUM_THREADS ?= 1

.PHONY: setup check test slow docs site options release

setup:  ## an environment in .venv with everything that the tests need
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e ".[cpu,test]"

check:  ## formatting, lint, spelling, types, and the rules of the rooms: minutes
	.ci/check $(BIN)
	$(BIN)/python -m pytest -q tests/whole/test_layers.py tests/whole/test_docs.py

test:  ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow:  ## the slow tests: whole trainings, kills, many processes
	$(BIN)/python -m pytest -m slow

docs:  ## renew what is generated, and check the links and names of every page
	$(BIN)/python docs/architecture.py
	$(BIN)/python -m pytest -q tests/whole/test_docs.py

site:  ## the documentation as a site in build/site, links checked: pip install -c constraints.txt -e ".[cpu,docs]" before
	$(BIN)/python -m mkdocs build

options:  ## renews the table of options, from which --help and early usage errors are made
	$(BIN)/python docs/options.py

release:  ## all of RELEASE.md before the tag, uploads nothing: make release VERSION=0.2.0
	BIN=$(BIN) PYTHON=$(PYTHON) .ci/release $(VERSION)

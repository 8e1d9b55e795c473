# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
TEST_VENV := build/test-venv
SOURCES := pyproject.toml constraints.txt $(shell find core tui assets -name '*.py' -o -name '*.tcss' -o -name '*.json*' -o -name '*.md' -o -name '*.safetensors')
INSTALL = -m pip install --quiet --disable-pip-version-check --retries 10 --constraint constraints.txt
# What builds the package is bounded as well: by the name that older versions of pip know, and by the newer one.
BOUND = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

help:
	@echo "make demo     install into $(VENV) and run the whole job on the bundled model and data"
	@echo "make install  install into $(VENV)"
	@echo "make test     lint, types and all tests in a fresh virtual environment"
	@echo "make bench    measurements (never part of the tests); one part: make bench-data,"
	@echo "              make bench-export, make bench-train (PEERS=PYTHON: a venv with trl, transformers, peft)"
	@echo "make bench-tui (PEERS='FOLDER …' with posting, harlequin): the interface beside others"
	@echo "make picture  record assets/tour.gif and assets/wizard.png again"

python-version:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "ollama-tune needs Python 3.10 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Say make PYTHON=python3.12 …"; exit 2; }

$(VENV)/installed: $(SOURCES) | python-version
	@echo "Installing into $(VENV) (a few minutes the first time: torch is large) …"
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@$(BOUND) $(VENV)/bin/python $(INSTALL) .
	@touch $@

install: $(VENV)/installed
	@echo "Installed. Start the wizard with $(VENV)/bin/ollama-tune"

demo: $(VENV)/installed
	@$(VENV)/bin/ollama-tune demo

test: python-version
	@rm -rf $(TEST_VENV) build/lib
	@echo "Installing into a fresh $(TEST_VENV) …"
	@$(PYTHON) -m venv $(TEST_VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@$(BOUND) $(TEST_VENV)/bin/python $(INSTALL) '.[test]'
	@$(MAKE) --no-print-directory check PYTHON=$(CURDIR)/$(TEST_VENV)/bin/python

check: lint types
	@$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint:
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

types:
	@mkdir -p build/types/ollama_tune
	@for room in core tui assets; do ln -sfn $(CURDIR)/$$room build/types/ollama_tune/$$room; done
	@MYPYPATH=build/types $(PYTHON) -m mypy -p ollama_tune

bench:
	@$(PYTHON) -m tests.bench.start
	@$(PYTHON) -m tests.bench.plan
	@$(PYTHON) -m tests.bench.packing
	@$(PYTHON) -m tests.bench.data
	@$(PYTHON) -m tests.bench.tui
	@$(MAKE) --no-print-directory bench-train PYTHON=$(PYTHON)

bench-train:
	@$(PYTHON) -m tests.bench.train $(if $(PEERS),--peers $(PEERS)) --output tests/bench/results/train_cpu.md

bench-gpu:
	@$(PYTHON) -m tests.bench.gpu_speed $(if $(PEERS),--peers $(PEERS))

bench-data:
	@$(PYTHON) -m tests.bench.data

bench-export:
	@$(PYTHON) -m tests.bench.export

bench-tui:
	@$(PYTHON) -m tests.bench.tui $(if $(PEERS),--peers $(PEERS))

picture:
	@$(PYTHON) -m tests.bench.tour --still assets/wizard.png assets/tour.gif $(dir $(PYTHON))ollama-tune

clean:
	rm -rf build dist *.egg-info $(VENV)

.PHONY: help python-version install demo test check lint types bench bench-data bench-export bench-train bench-gpu bench-tui picture clean

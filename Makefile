# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3

types:
	@mkdir -p build/types/ollama_tune
	@for room in core tui assets; do ln -sfn $(CURDIR)/$$room build/types/ollama_tune/$$room; done
	@MYPYPATH=build/types $(PYTHON) -m mypy -p ollama_tune

lint:
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

.PHONY: types lint

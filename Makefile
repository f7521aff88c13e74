# Two commands: `make train` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint docs clean

train: .venv/base
	$(BIN)/hybridtron train configs/runs/quickstart.yaml --resume

test: .venv/dev lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/base
	$(BIN)/python -m hybridtron.training.reference > docs/config.md
	$(BIN)/python -m hybridtron.composer.nas.reference > docs/search.md

# torch first and pinned: 2.13.0 from PyPI runs without CUDA's gigabytes.
.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hybridtron needs Python 3.11 or newer")'
	@echo "setting up .venv: about 1.5 GB of packages, some minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/base
	@echo "adding what tests and benchmarks need to .venv: about 0.4 GB, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info

# `make train` and `make test` do everything; both make .venv when it is missing. `make quick` while you work.
PYTHON ?= python3
# What pip is asked for. Where the package index serves CUDA's builds of torch, a machine without a GPU saves gigabytes
# by naming a CPU build: make train TORCH='torch==2.13.0+cpu', with pip set up for an index that has it.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Fast tests that touch every folder of the package.
QUICK = tests/accounting/test_describe.py tests/api/test_door.py tests/backends tests/cli/test_main.py \
	tests/composer/votes/test_aggregate.py tests/composer/space/test_space.py tests/config tests/data/loaders/test_batches.py \
	tests/data/tokenizers/test_tokenizer.py tests/distributed/process_groups/test_environment.py tests/laws/fitting tests/mad/scoring \
	tests/mad/tasks tests/mixers/test_contract.py tests/model/test_initialize.py tests/ops/conv tests/reporting \
	tests/test_pattern.py tests/test_structure.py tests/test_tensors.py tests/training/test_lr_schedule.py

.PHONY: train test pytest quick cluster gpu lint docs reference clean

train: .venv/base
	$(BIN)/hybridtron train configs/runs/quickstart.yaml --resume

# Side by side, since checking all types keeps one core busy for a minute.
test: .venv/dev
	$(MAKE) --no-print-directory --jobs 2 lint pytest

# A run in which a process of tests crashes ends soon: one that started it anew has waited for ever.
pytest: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

quick: .venv/dev lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(QUICK)

# Jobs that meet each fault on a private SLURM cluster: some minutes, best on a machine without other load.
cluster: .venv/dev
	$(BIN)/python -m pytest -m cluster

# Tests on a CUDA device, within 8 minutes on one H100: in the environment of $(PYTHON), as docs/gpu.md makes it.
gpu:
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m pytest -m gpu tests/gpu

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs reference
	$(BIN)/mkdocs build --strict

reference: .venv/base
	$(BIN)/python -m hybridtron.training.reference > docs/config.md
	$(BIN)/python -m hybridtron.composer.nas.reference > docs/search.md
	$(BIN)/python -m hybridtron.ablations.reference > docs/ablation_keys.md
	$(BIN)/python -m hybridtron.launcher.reference > docs/launch_keys.md

.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hybridtron needs Python 3.11 or newer")'
	@echo "setting up .venv: about 1.5 GB of packages, some minutes, once"
	$(PYTHON) -m venv .venv
	$(PIP) '$(TORCH)'
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/base
	@echo "adding what tests and benchmarks need to .venv: about 0.4 GB, once"
	$(PIP) --editable '.[dev]'
	touch $@

.venv/docs: .venv/base
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info

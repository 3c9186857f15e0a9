# make quickstart   train a small agent on real Meta-World tasks, in minutes on a CPU
# make test         lint, type check and the whole test suite
# make soak         hours of breaking things: long runs, hundreds of kills, tens of thousands of odd inputs
# make install      only create .venv and install
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test lint soak install
install: $(INSTALLED)

# Made anew where it was interrupted or the requirements changed: the mark is written last.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python scripts/train.py benchmark=quickstart run_dir=runs/quickstart

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

soak: install
	$(BIN)/python scripts/soak.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability --hypothesis-profile=soak

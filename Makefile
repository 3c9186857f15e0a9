# make quickstart   train a small agent on real Meta-World tasks, in minutes on a CPU
# make test         lint, type check and the whole test suite
# make soak         hours of breaking things: long runs, hundreds of kills, tens of thousands of odd inputs
# make digits       every method on the supervised benchmark, five seeds: the table of docs/results.md
# make docs         the documentation site: site/index.html; with its search: python -m http.server --directory site
# make gpu          on a new GPU: tests, captures, benchmarks, then MT10 until it is stopped; a page in runs/gpu
# make install      only create .venv and install, everything; make quickstart installs what training needs
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test lint docs soak digits gpu install
install: $(INSTALLED)-dev

# Each mark is written last: what was interrupted is done again, and so is what the requirements changed for.
.venv/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"Python 3.11 to 3.13 is needed, and this is {v[0]}.{v[1]} (Meta-World asks for a MuJoCo that has no build for 3.14): make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The extras of pyproject.toml: train, and dev, which is more than train.
$(INSTALLED)-%: .venv/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@ $(INSTALLED)-train

quickstart: $(INSTALLED)-train
	$(BIN)/python scripts/train.py benchmark=quickstart run_dir=runs/quickstart

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: install
	$(BIN)/python tests/reliability/soak.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability --hypothesis-profile=soak

gpu: install
	$(BIN)/python scripts/gpu.py

DIGITS := $(BIN)/python scripts/supervised.py -m 'seed=range(1,6)' epochs=25 learning_rate_decay=0.9 \
	hydra/launcher=joblib hydra.sweep.dir=runs/digits
digits: install
	$(DIGITS) 'tasks=[CL],[CR],[RR]'
	$(DIGITS) 'tasks=[CL,CR],[CL,RR]' 'combiner=glob(*,exclude=[fixed,stch])'
	$(DIGITS) 'tasks=[CL,CR],[CL,RR]' combiner=stch combiner.warmup=215
	$(DIGITS) 'tasks=[CL,CR],[CL,RR]' method=individual_steps,individual_optimizers,auto_lambda,rotograd
	$(DIGITS) 'tasks=[CL,CR],[CL,RR]' method=maximum_roaming method.roaming_updates=1000
	$(DIGITS) 'tasks=[CL,RR]' combiner=fixed 'combiner.weights=[0.2,1.8],[0.1,1.9],[0.05,1.95]'
	$(BIN)/python scripts/compare.py runs=runs/digits out=runs/digits/report

# Every target sets up .venv by itself; the second run skips that. The README has the same without make.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test sweep lint lab docs prepare clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(READY) ## compress a real language model four ways and show what that brought and cost (5 to 15 minutes)
	$(BIN)/compress-lab run

test: $(READY) ## run the tests and the quicker notebooks (a quarter of an hour with the first set-up)
	$(BIN)/python -m pytest -n $(WORKERS)

sweep: $(READY) ## run what takes longer: the other notebooks, every architecture, the heaviest cases (45 minutes)
	$(BIN)/python -m pytest -n $(WORKERS) --flags sweep -m sweep

lint: $(READY) ## look at the code of notebooks and tests with ruff, and at the direction of imports
	$(BIN)/ruff check nbs tests
	$(BIN)/ruff format --check nbs tests
	$(BIN)/lint-imports --no-cache

lab: $(READY) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

docs: $(READY) ## build the documentation site in _docs
	$(BIN)/python -m compress_lab.site build

prepare: $(READY) ## after editing notebooks: export, clean, write the README, test
	$(BIN)/ruff format nbs tests
	$(BIN)/ruff check nbs tests
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m compress_lab.site readme
	$(BIN)/python -m pytest -n $(WORKERS)

clean: ## remove what was built; the environment stays
	rm -rf _docs _proc build dist compress_lab.egg-info .pytest_cache .hypothesis

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("compress_lab needs Python 3.11 or newer; this is %s. Try make PYTHON=python3.12" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(INSTALL) -c constraints.txt torch==2.13.0
	$(INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

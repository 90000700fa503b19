# One word per thing. `./run WORD` does the same on a machine that has nothing but Python; `./run WORD --flags`, or
# `make WORD ARGS=--flags`, hands flags to the command behind the word.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests wait for servers most of their time; each process starts its own.
TESTS_AT_ONCE ?= -n 3 --dist loadfile --no-loadscope-reorder
# As root and in CI everything is there that tests need: what is skipped then has failed.
NO_SKIPS ?= $(if $(CI)$(filter 0,$(shell id -u)),--no-skips)

.PHONY: install tools demo test quick check format lint types imports docs site bench kill proof mutants clean

install: $(VENV)/.installed     ## what runs it, in .venv

$(VENV)/.installed: pyproject.toml
	@echo "Installing Rise into $(VENV): about a minute …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[llm]'
	@touch $@

tools: $(VENV)/.tools           ## what checks and tests need as well: 800 MB

$(VENV)/.tools: pyproject.toml
	@echo "Installing Rise, and what its checks and tests need, into $(VENV): some minutes …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: install                   ## chat with a bot in the browser
	@$(BIN)/rise demo $(ARGS)

test: tools                     ## every check and every test
	$(MAKE) check
	$(BIN)/python -m pytest $(TESTS_AT_ONCE) $(NO_SKIPS) $(ARGS)

quick: tools                    ## without the slow tests
	$(BIN)/python -m pytest -m 'not slow' -x -q $(ARGS)

check: lint types imports docs  ## what needs no running

lint: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: tools
	$(BIN)/mypy

imports: tools
	$(BIN)/lint-imports --no-logo

docs: tools
	$(BIN)/python -m rise.cli.reference --check

site: tools                     ## the pages of docs/ as a site, in site/; a link that leads nowhere ends it
	$(BIN)/zensical build --strict --clean $(ARGS)

format: tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: tools                    ## ratios, side by side in one run
	$(BIN)/rise bench $(ARGS)

kill: tools                     ## kill -9 at 200 random moments, and the table of what came of it
	$(BIN)/python -m pytest tests/proof/test_kill.py -k random_moments -s --kills 200 $(ARGS)

proof: tools                    ## hours: two of simulated worlds, 400 kills of real processes, and everything tried a hundred times as often
	$(BIN)/rise simulate --minutes 60 --first 1000000
	$(BIN)/rise simulate --profile full --minutes 60 --first 1000000
	$(BIN)/rise drill --cycles 300 --seed 20260101
	$(BIN)/rise drill --cycles 100 --seed 20260101 --mode polling
	$(BIN)/rise drill --profile full --cycles 58 --seed 20260101
	$(BIN)/rise drill --profile mongo --cycles 34 --seed 20260101
	$(BIN)/rise drill --table --seed 20260101
	$(BIN)/python -m pytest tests/fakes tests/properties tests/api/test_api_schema.py --examples 10000

mutants: tools                  ## small bugs put into the protocol's core, one at a time: which does no test notice?
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache site

# One word per thing. `./run WORD` does the same on a machine that has nothing but Python; `./run WORD --flags`, or
# `make WORD ARGS=--flags`, hands flags to the command behind the word.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# As root and in CI everything is there that tests need: what is skipped then has failed.
NO_SKIPS ?= $(if $(CI)$(filter 0,$(shell id -u)),--no-skips)

.PHONY: install demo test quick check format lint types imports docs bench kill proof mutants clean

install: $(VENV)/.installed     ## everything that is needed, in .venv

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install                   ## chat with a bot in the browser
	$(BIN)/rise demo $(ARGS)

test: install                   ## every check and every test
	$(MAKE) check
	$(BIN)/python -m pytest $(NO_SKIPS) $(ARGS)

quick: install                  ## the tests that take no time
	$(BIN)/python -m pytest -m 'not slow' -x -q $(ARGS)

check: lint types imports docs  ## what needs no running

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports --no-logo

docs: install
	$(BIN)/python -m rise.cli.reference --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install                  ## ratios, side by side in one run
	$(BIN)/rise bench $(ARGS)

kill: install                   ## kill -9 at 200 random moments, and the table of what came of it
	$(BIN)/python -m pytest tests/proof/test_kill.py -k random_moments -s --kills 200 $(ARGS)

proof: install                  ## hours: two of simulated worlds, 400 kills of real processes, and everything tried a hundred times as often
	$(BIN)/rise simulate --minutes 60 --first 1000000
	$(BIN)/rise simulate --profile full --minutes 60 --first 1000000
	$(BIN)/rise drill --cycles 300 --seed 20260101
	$(BIN)/rise drill --cycles 100 --seed 20260101 --mode polling
	$(BIN)/rise drill --profile full --cycles 58 --seed 20260101
	$(BIN)/rise drill --table --seed 20260101
	$(BIN)/python -m pytest tests/fakes tests/properties tests/api/test_api_schema.py --examples 10000

mutants: install                ## small bugs put into the protocol's core, one at a time: which does no test notice?
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

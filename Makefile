# make demo | test | serve | bench | gpu-check | lint | setup | lock
.PHONY: setup lock demo test serve bench gpu-check lint
BIN := .venv/bin

setup:
	@setup/setup.sh

lock:
	@setup/lock.sh

demo: setup
	@$(BIN)/python -m agent_examples.demo

test: setup
	@setup/testing.sh
	@$(BIN)/pytest

serve: setup
	@$(BIN)/isobox serve

bench: setup
	@$(BIN)/python -m benchmarks

gpu-check: setup
	@$(BIN)/python -m benchmarks.gpu_check

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Everything that is needed beyond this file: make, python3-venv (Python >= 3.11) and PyPI.
#
#   make run     set up, then the main job on the default example
#   make test    set up, then the whole test suite (PYTEST="-k kho" passes flags on)
#   make lint    set up, then linters, type checker and the protos' linter
#   make bench   set up, then the benchmarks beside their targets (BENCH=--full: those of minutes too)
#   make bench-parts   set up, then the benchmarks of parts, with pytest-benchmark
#   make proto   regenerate the code beside the protos
#   make lock    resolve the dependencies of pyproject.toml anew

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements.lock
PYTEST ?=

PROTO_DIR := proto
PROTOS    := lufleet/v1/host.proto lufleet/v1/vm.proto lufleet/v1/fleet.proto

.DEFAULT_GOAL := run
.PHONY: setup run test lint format bench bench-parts proto lock clean

# Set-up is redone only when the lock's content differs from what was installed last.
setup:
	@cmp -s $(LOCK) $(VENV)/installed.lock || $(MAKE) --no-print-directory $(VENV)/installed.lock

.PHONY: $(VENV)/installed.lock
$(VENV)/installed.lock:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lufleet needs Python >= 3.11; name one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	@cp $(LOCK) $@

run: setup
	$(BIN)/lufleet run examples/rolling-update.toml

test: setup
	$(BIN)/python -m pytest $(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint $(PROTO_DIR)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	PYTHONPATH=. $(BIN)/python -m benchmarks.table $(BENCH)

bench-parts: setup
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-only $(PYTEST)

proto: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I $(PROTO_DIR) \
		--python_out=$(PROTO_DIR) --mypy_out=$(PROTO_DIR) \
		--grpc_python_out=$(PROTO_DIR) --mypy_grpc_out=$(PROTO_DIR) $(PROTOS)

lock:
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	UV_CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/uv pip compile pyproject.toml \
		--all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-config --quiet $(LOCK_FLAGS) --output-file $(LOCK)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

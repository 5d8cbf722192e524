# Every target does its own set-up: the environment in .venv is made once, and anew when pyproject.toml changes.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)
CODE := runtime server client protos examples benchmarks
# numerical libraries must not each start a thread a core beside pytest's workers
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

export ORT_DISABLE_TELEMETRY := 1

.PHONY: setup demo test test-fast test-perturbed check bench load overload faults fuzz fuzz-models batches soak conformance
.PHONY: protos docs pages docker frameworks clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# the main job and the public surface, in seconds
test-fast: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m "not slow" tests/test_main_job.py tests/test_public_surface.py tests/cli

# the tests that depend on the machine, with blockings, vector width and threads of others; ONLY=2-8-3 is one of nine
test-perturbed: setup
	$(ONE_THREAD) $(BIN)/python scripts/perturbed.py --workers $(WORKERS) $(if $(ONLY),--only $(ONLY)) $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	scripts/protos.sh --check
	$(BIN)/python scripts/api.py --check
	PYTHONPATH=. $(BIN)/python scripts/operators.py --check

# ONWARD_TORCH_PYTHON names an interpreter that has torch; ONLY, KIND and BENCH narrow it down or pass options;
# NETWORKS=exported measures what torch exports instead of the zoo
bench: setup
	$(BIN)/python -m benchmarks.$(or $(NETWORKS),run) $(if $(ONLY),--only $(ONLY)) $(if $(KIND),--kind $(KIND)) $(BENCH)

# the server under more than it can do; beside others; when something breaks; given malformed requests;
# a million batched; half a million of every kind
# (a line that begins with "load" would be a directive)
overload load faults fuzz batches soak: setup
	PYTHONPATH=. $(BIN)/python -m benchmarks.service.$@ $(SERVICE)

# damaged files and random graphs beside onnxruntime; FUZZ has options
fuzz-models: setup
	PYTHONPATH=. $(ONE_THREAD) $(BIN)/python -m benchmarks.fuzz_models $(FUZZ)

# the ONNX project's whole suite in both engines, and gradients; ONLY narrows it down; ONWARD_TORCH_PYTHON, as
# for bench, compares gradients with torch's
conformance: setup
	PYTHONPATH=. $(ONE_THREAD) $(BIN)/python -m tests.ops.conformance $(if $(ONLY),--only $(ONLY)) $(CONFORMANCE)

protos: setup
	scripts/protos.sh

# the site in build/site
docs: setup
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# pages that the code writes
pages: setup
	$(BIN)/python scripts/api.py
	PYTHONPATH=. $(BIN)/python scripts/operators.py

# Flower's protobuf is older than that of `dev`: with Ray and MPICH, in an environment of their own.
frameworks:
	test -x .venvs/frameworks/bin/python || $(PYTHON) -m venv .venvs/frameworks
	.venvs/frameworks/bin/python -m pip install --quiet -e '.[data,flower,mpi]' 'flwr[simulation]' 'ray[train]' mpich \
	  pytest pytest-asyncio
	$(ONE_THREAD) .venvs/frameworks/bin/python -m pytest tests/federated tests/parallel/test_ray_train.py

docker: setup
	docker/check.sh

clean:
	rm -rf $(VENV) .venvs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .docker-check

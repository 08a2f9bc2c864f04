# `make` lists the targets. PYTHON=python3.12 chooses the interpreter of a new .venv. `demo`
# installs what it needs, every other target all but vLLM, which has an environment of its own: what
# the other has left stays.
#
# On Linux the default package index serves torch with its CUDA libraries (gigabytes). Without a
# GPU, export PIP_EXTRA_INDEX_URL (an index that has CPU builds) or PIP_FIND_LINKS (a folder of
# wheels) first: constraints.txt takes the CPU build as well.

PYTHON ?= python3
ROUNDS ?= 3
SECONDS ?= 600
SEED ?= 1
BIN := .venv/bin
STAMP := .venv/.installed
DEMO_STAMP := .venv/.demo
VLLM_STAMP := .venv-vllm/.installed
SET := pyproject.toml constraints.txt scripts/install.py
# CI's log says which tests take long. A tiny model gains nothing from a second thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --dist worksteal $(if $(CI),--durations=25)

# Without bytecode each start of a process that trains takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo lint check test deployments slow chaos test-vllm screenshots format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with everything but vLLM, as constraints.txt says

$(STAMP): $(SET)
	$(PYTHON) scripts/install.py dev
	@touch $(DEMO_STAMP) $@

$(DEMO_STAMP): $(SET)
	$(PYTHON) scripts/install.py demo
	@touch $@

demo: $(DEMO_STAMP) ## Run the whole pipeline on this machine: no server, no GPU, no download
	$(BIN)/babylon demo

lint: venv ## Check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

check: lint ## lint and the unit tests: no server, under a minute; for every change
	$(PYTEST) -n 2 tests/unit

test: lint ## lint, and all tests but the slow ones
	$(PYTEST) -n 3  # on two cores: these tests wait for processes

deployments: venv ## The slow tests, most of them of whole deployments; CI runs them after `test`
	$(PYTEST) -n 3 -m slow tests/acceptance tests/integration

slow: deployments ## Those, then 100,000 examples for each door
	$(PYTEST) -n 2 -m slow tests/unit

chaos: venv ## Every fault ROUNDS times, a soak of SECONDS with kills drawn from SEED, and a table
	$(BIN)/pytest tests/chaos -m '' --rounds $(ROUNDS) --seconds $(SECONDS) --seed $(SEED)

$(VLLM_STAMP): constraints-vllm.txt scripts/install_vllm.py
	$(PYTHON) scripts/install_vllm.py
	@touch $@

test-vllm: venv $(VLLM_STAMP) ## Real vLLM, in .venv-vllm, with adapters that are trained here
	$(PYTEST) -m vllm tests/vllm

screenshots: venv ## Take the pictures in docs/ anew, with Debian's Chromium; look at them
	$(BIN)/python benchmarks/screenshots.py

format: venv ## Mend style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, .venv-vllm and what the tools left; .babylon stays
	rm -rf .venv .venv-vllm build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

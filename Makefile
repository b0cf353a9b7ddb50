# Everything a person or CI does with this repository. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
PYTHON := $(VENV)/bin/python
export PYTHONPATH := tests
EXTRAS := --extra operator --extra runner --extra demo --extra dev
COMPILE := $(VENV)/bin/uv pip compile pyproject.toml --generate-hashes --no-emit-index-url --no-header \
           --python-version 3.11 --quiet
PYTEST := $(PYTHON) -m pytest

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/ready ## Make .venv with everything that development and the demo need

$(VENV)/ready: constraints.txt pyproject.toml
	@echo "Installing Python packages into $(VENV) (2.9 GB; about a minute)"
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes -r constraints.txt
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $@

.PHONY: demo
demo: setup ## Train, prune, retrain and export a digits detector on a real Kubernetes
	@$(PYTHON) -m demo

.PHONY: demo-down
demo-down: setup ## Remove the demo's cluster
	@$(PYTHON) -m cluster down --name demo

.PHONY: test
test: unit integration e2e ## All tests: unit, integration (API server), e2e (node and images)

.PHONY: unit
unit: setup ## Tests that take seconds: no TensorFlow graph, no cluster
	$(PYTEST) tests/unit

.PHONY: integration
integration: setup ## Tests on a real API server, and with small real models
	$(PYTEST) tests/integration

.PHONY: e2e
e2e: setup ## Tests on a real node with the real images (root)
	$(PYTEST) tests/e2e

.PHONY: lint
lint: setup ## ruff, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

.PHONY: format
format: setup ## Reformat
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: typecheck
typecheck: setup ## mypy, strict
	$(VENV)/bin/mypy

.PHONY: generate
generate: setup ## Generate CRDs and reference documents from the models
	$(PYTHON) -m tlt_api.crdgen crds
	$(PYTHON) -m tlt_api.docgen docs

.PHONY: verify
verify: generate ## Fail when a generated file was not committed
	git diff --exit-code -- "crds/*.yaml" docs/api.md docs/failures.md

.PHONY: constraints
constraints: setup ## Resolve dependencies anew, with hashes
	$(COMPILE) $(EXTRAS) -o constraints.txt
	$(COMPILE) --extra operator -c constraints.txt -o constraints-operator.txt
	$(COMPILE) --extra runner -c constraints.txt -o constraints-runner.txt

.PHONY: cluster-up
cluster-up: setup ## Start a Kubernetes with a node here, and print the KUBECONFIG to use
	@$(PYTHON) -m cluster up

.PHONY: cluster-down
cluster-down: setup ## Stop it
	@$(PYTHON) -m cluster down

.PHONY: images
images: setup ## Build the operator's and the runner's image
	@$(PYTHON) -m cluster images

.PHONY: clean
clean: ## Remove what tests and the demo made, but not what takes long to build
	rm -rf .tlt .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

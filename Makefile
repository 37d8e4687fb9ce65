# `make` lists the targets. Everything is installed into .venv at the root; nothing outside the checkout is changed.
export UV_HTTP_TIMEOUT ?= 600
export UV_SYSTEM_CERTS ?= 1
export UV_NATIVE_TLS ?= 1
# The choice of `make install TORCH_BACKEND=cpu` is kept until another one is made.
export TORCH_BACKEND ?= $(shell cat .venv/.torch-backend 2>/dev/null)

PYTHON := .venv/bin/python
STAMP := .venv/.installed$(addprefix -,$(TORCH_BACKEND))
DEV := .venv/.installed-dev
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 8
QUICK := not slow and not gpu and not container and not browser
CRATE := --manifest-path rustbpe/Cargo.toml
CRATE_FILES := $(wildcard rustbpe/*.toml rustbpe/*.pyi rustbpe/Cargo.lock) $(shell find rustbpe/src -name '*.rs' 2>/dev/null)
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart chat serve test check test-slow test-containers test-browser lint docs bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with all that runs (TORCH_BACKEND=cpu: a small torch without CUDA)
$(STAMP): requirements.lock pyproject.toml scripts/install.sh scripts/lock_parts.py $(CRATE_FILES)
	@scripts/install.sh
	@touch $@

# The tools of tests and checks, installed by the first target that needs them.
$(DEV): $(STAMP)
	@scripts/install.sh dev
	@touch $@

quickstart: $(STAMP) ## from nothing to a chat: train a small model on this machine's CPU and talk to it
	$(PYTHON) entrypoint.py quickstart

chat: $(STAMP) ## chat with the newest model in this terminal
	$(PYTHON) entrypoint.py chat

serve: $(STAMP) ## the chat page and the API on http://127.0.0.1:8000/ (make serve PORT=8080: another port)
	$(PYTHON) entrypoint.py serve $(if $(PORT),--port $(PORT))

test: $(DEV) ## every test that needs no GPU, container or browser and is not marked slow
	cargo test --quiet $(CRATE)
	$(PYTEST) -m "$(QUICK)"

check: lint ## lint and the quick tests, within a minute
	$(PYTEST) -m "$(QUICK) and not long" -q

test-slow: $(DEV) ## the long tests: kill loops, fuzzing, load; with Docker also lost nodes and cut networks
	$(PYTEST) -m "slow and not gpu and not container and not browser"
	$(PYTHON) -m pytest -m "slow and container" -rs --durations=10

test-containers: $(DEV) ## the tests that build and run containers
	$(PYTHON) -m pytest -m "container and not slow" -rs --durations=10

test-browser: $(DEV) ## the page in headless Chromium (skipped where there is none)
	$(PYTHON) -m pytest -m browser

lint: $(DEV) ## ruff, mypy, clippy, the formatters' checks, prose, hadolint, zizmor
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m scripts.prose
	.venv/bin/hadolint Dockerfile.cuda
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.renovate .github/renovate.json
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.webui.yml
	.venv/bin/zizmor --offline --quiet --no-progress .github
	cargo fmt --check $(CRATE)
	cargo clippy --quiet --all-targets --all-features $(CRATE) -- -D warnings

docs: $(DEV) ## write the generated documents again: file map, reference, troubleshooting, .env.example
	$(PYTHON) -m scripts.file_map
	$(PYTHON) -m scripts.reference
	$(PYTHON) -m scripts.troubleshooting

bench: $(DEV) ## the measurements of docs/benchmarks/log.md
	for script in bench/*.py; do $(PYTHON) $$script || exit 1; done

lock: $(DEV) ## renew requirements.lock from pyproject.toml
	scripts/lock.sh

clean: ## remove .venv and everything built (never your data)
	rm -rf .venv .bootstrap .install.log rustbpe/target .pytest_cache .ruff_cache .mypy_cache .hypothesis

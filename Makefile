# Everything runs in .venv, which is made and kept in step with requirements.lock.
#
#   make test PYTEST_ARGS="tests/data -k toy"   part of the tests
#   make demo TORCH_INDEX=URL                   one more package index to look for torch in
#   make demo CUDA=no                           the CPU build of torch although there is an NVIDIA GPU (or CUDA=yes)
#   make lock LOCK_ARGS=--upgrade               newest versions instead of as few changes as possible

CUDA ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=
STORE ?= runs/lab
LOCK_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.stamp
PIP = $(BIN)/python -m pip install -qq --no-input
EXTRA_INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
FIND_PYTHON = for python in python3.11 python3; do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; done; \
    [ "$$python" ] || { \
    echo "Foretaste needs Python 3.11 or newer; found neither python3.11 nor a newer python3." >&2; exit 1; }
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifndef FORETASTE_DATA
FORETASTE_DATA := $(shell cd ../shared/data 2>/dev/null && pwd)
ifneq ($(FORETASTE_DATA),)
export FORETASTE_DATA
endif
endif

.PHONY: help demo test check bench lock clean apertium results

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## plant a backdoor, train the taster, write the report
	@$(BIN)/foretaste demo

test: $(STAMP) ## run the tests and doctests (no network)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(STAMP) ## lint, formatting, types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(STAMP) ## time guarded against unguarded inference, and ONION against its reference
	@$(BIN)/python benchmarks/guarded_inference.py && $(BIN)/python benchmarks/onion.py

# Without a GPU, torch comes without its dependencies (the lock holds the small ones), and its CUDA build, which cannot
# even be imported without several GB of libraries, is refused before anything is installed.
$(STAMP): requirements.lock pyproject.toml
	@$(FIND_PYTHON); set -e; \
	if [ ! -x $(BIN)/python ]; then echo "Making .venv with $$("$$python" --version)"; "$$python" -m venv .venv; fi; \
	rm -f $@; \
	grep '^torch==' requirements.lock > .venv/torch.txt; \
	grep -v '^torch==' requirements.lock > .venv/others.txt; \
	cuda=$(CUDA); \
	if [ -z "$$cuda" ]; then cuda=no; if nvidia-smi -L > /dev/null 2>&1; then cuda=yes; fi; fi; \
	if [ $$cuda != yes ]; then \
	    $(PIP) $(EXTRA_INDEX) --no-deps --dry-run --report .venv/torch.json -r .venv/torch.txt; \
	    $(BIN)/python -c "$$REFUSE_CUDA" .venv/torch.json; \
	fi; \
	echo "Installing $$(grep -c '^[a-z].*==' .venv/others.txt) packages (a minute or two)"; \
	$(PIP) --no-deps --require-hashes -r .venv/others.txt; \
	if [ $$cuda = yes ]; then \
	    echo "Installing $$(cat .venv/torch.txt) with its CUDA libraries (several GB)"; \
	    $(PIP) $(EXTRA_INDEX) -r .venv/torch.txt; \
	else \
	    echo "Installing $$(cat .venv/torch.txt) for the CPU"; \
	    $(PIP) $(EXTRA_INDEX) --no-deps -r .venv/torch.txt; \
	fi; \
	echo "Installing foretaste"; \
	$(PIP) --no-deps --no-build-isolation -e .; \
	touch $@

define REFUSE_CUDA
import json, sys
for found in json.load(open(sys.argv[1]))["install"]:
    needs = found["metadata"].get("requires_dist", ())
    if sys.platform == "linux" and any(need.startswith(("cuda-", "nvidia-")) for need in needs):
        sys.exit(
            "This machine has no NVIDIA GPU, but the torch found here is the CUDA build (several GB). Choose:\n"
            "  make TORCH_INDEX=URL ...   URL is PyTorch's index of CPU wheels, see 'Get Started' on its site\n"
            "  make CUDA=yes ...          the CUDA build all the same; it works without a GPU"
        )
endef
export REFUSE_CUDA

# torch is left out of the resolution (an override that never applies) and its small dependencies are named here
# instead: the build, and with it the hash and the CUDA libraries, depends on the machine.
TORCH_NEEDS = filelock fsspec jinja2 networkx 'setuptools>=77.0.3' 'sympy>=1.13.3' 'typing-extensions>=4.10.0'
BUILD_NEEDS = hatchling editables

define LOCK_HEADER
# Exact versions for Linux and CPython 3.11, extras minilm, ray and dev and the build backend included. Made by `make lock`.
# torch bears no hash and must be installed on its own, as the Makefile does: which build fits depends on the machine.
endef
export LOCK_HEADER

results: $(STAMP) ## keep a store's records in results/ and write docs/results.md (STORE=runs/lab)
	@$(BIN)/foretaste report $(STORE) -o build/site
	@rm -rf results && mkdir results && cp -r $(STORE)/cells $(STORE)/plans build/site/cells.csv results/
	@cp build/site/results.md docs/results.md

apertium: ## install the translator of back-translation (Debian and kin; needs root)
	@if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	$$sudo apt-get install -y --no-install-recommends apertium-eng-spa && apertium -l

lock: ## renew requirements.lock from pyproject.toml
	@$(FIND_PYTHON); set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	echo "Resolving"; \
	"$$python" -m venv "$$work/venv"; \
	"$$work/venv/bin/python" -m pip install -qq uv; \
	[ ! -f requirements.lock ] || cp requirements.lock "$$work/lock"; \
	echo "torch ; python_version < '3'" > "$$work/override"; \
	printf '%s\n' $(BUILD_NEEDS) $(TORCH_NEEDS) > "$$work/more.in"; \
	"$$work/venv/bin/uv" pip compile -q pyproject.toml "$$work/more.in" --extra minilm --extra ray --extra dev \
	    --override "$$work/override" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-header --no-annotate $(LOCK_ARGS) -o "$$work/lock" > /dev/null; \
	{ echo "$$LOCK_HEADER"; sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml; cat "$$work/lock"; } \
	    > "$$work/new"; \
	cp "$$work/new" requirements.lock; \
	echo "Wrote requirements.lock: $$(grep -c '^[a-z].*==' requirements.lock) packages"

clean: ## remove what make made: .venv, caches, builds, demo-out (runs/ stays)
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-out
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

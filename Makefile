# Leeward: everything that a fresh Debian 12 machine needs is done by these targets; `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HYPERVISOR ?= qemu
LAB ?= .lab

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PACKAGES_ANYWHERE := etcd-server etcd-client python3-venv
PACKAGES_HOSTS := busybox-static cpio dosfstools fence-agents fdisk gcc iproute2 kmod libc6-dev libvirt-clients \
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-dev mtools ovmf pkg-config python3-dev qemu-system-x86 qemu-utils \
	syslinux syslinux-common tini xz-utils zstd

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

# What is missing is installed, and nothing is asked of a machine that has it all. A machine that is used without root
# needs the packages to be there already, or runs the simulated cluster, which needs none of the hosts' packages.
define install_packages
	@missing=""; for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then echo "Installing Debian packages:$$missing"; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

.PHONY: packages
packages:  ## Install the Debian packages that real hosts and the tests need
	$(call install_packages,$(PACKAGES_ANYWHERE) $(PACKAGES_HOSTS))

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Leeward into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[controller,agent,dev]'
	@touch $@

$(VENV)/.ready-simulated: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Leeward into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[controller]'
	@touch $@

.PHONY: venv
venv: packages  ## Make the virtual environment, with the versions in constraints.txt
	@$(MAKE) --no-print-directory $(VENV)/.ready

.PHONY: venv-simulated
venv-simulated:
	@test -e $(VENV)/.ready || $(MAKE) --no-print-directory $(VENV)/.ready-simulated

.PHONY: demo
ifeq ($(HYPERVISOR),simulated)
demo: venv-simulated  ## Watch the main job: launch, live-migrate, cut the power, restart elsewhere (HYPERVISOR=simulated: without root)
	@$(BIN)/python -m leeward_lab.demo --hypervisor simulated
else
demo: venv
	@$(BIN)/python -m leeward_lab.demo --hypervisor qemu
endif

.PHONY: up
up: venv  ## Start the demo's cluster and leave it running, for playing
	@$(BIN)/python -m leeward_lab.playground up --directory $(LAB)/playground

.PHONY: down
down:  ## Stop the cluster of `make up` and remove all it left
	@$(BIN)/python -m leeward_lab.playground down --directory $(LAB)/playground

.PHONY: tour
tour: venv  ## Every operation on real guests through the command line, on the cluster of `make up` or one of its own
	@$(BIN)/python -m leeward_lab.tour --playground $(LAB)/playground

.PHONY: test
test: venv  ## Run all tests: unit, contract, simulation, scenarios, real hosts
	@$(BIN)/python scripts/run_tests.py $(PYTEST_ARGS)

.PHONY: simulation
simulation: venv  ## Run the simulation over many seeds (SEEDS=200), or replay one (SEED=7)
	@$(BIN)/python -m tests.simulation.$(if $(SEED),swarm --seed $(SEED),many --seeds $(or $(SEEDS),200))

.PHONY: mutants
mutants: venv  ## Sabotage the product line by line, and see that the simulation notices each time
	@$(BIN)/python -m tests.simulation.mutants $(MUTANTS)

.PHONY: sequences
sequences: venv  ## Run random sequences of every operation with failures (EXAMPLES=2000), decided by SEED=0
	@$(BIN)/python -m tests.simulation.sequences --examples $(or $(EXAMPLES),2000) --seed $(or $(SEED),0)

.PHONY: bench
bench: venv  ## Measure, print a table, and write bench/results/latest.json
	@$(BIN)/python -m bench

.PHONY: protos
protos: venv  ## Regenerate the stubs from protos/
	@$(BIN)/python scripts/protos.py

.PHONY: docs
docs: venv  ## Write docs/operations.md from the transition table
	@$(BIN)/python scripts/operations_page.py

.PHONY: format
format: venv  ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

.PHONY: check
check: venv check-ruff check-mypy check-pyright check-imports check-protos check-docs  ## Run every static check

.PHONY: check-ruff
check-ruff:  ## Style: ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

.PHONY: check-mypy
check-mypy:  ## Types: mypy, strict
	@$(BIN)/mypy

.PHONY: check-pyright
check-pyright:  ## Types once more: pyright
	@$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: check-imports
check-imports:  ## Layers: import-linter
	@$(BIN)/lint-imports

.PHONY: check-protos
check-protos:  ## Contract: buf lint, and stubs that match protos/
	@$(BIN)/python scripts/protos.py --check
	@set -e; image=$$(mktemp --suffix=.binpb); trap 'rm -f "$$image"' EXIT; \
	  $(BIN)/python scripts/protos.py --descriptor-set "$$image"; $(BIN)/buf lint "$$image" --config buf.yaml && echo "buf lint: clean"

.PHONY: check-docs
check-docs:  ## Pages that are made from code match it
	@$(BIN)/python scripts/operations_page.py --check

.PHONY: clean
clean:  ## Remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

# Each target does what it needs first and is quick when that was done before. PYTHON=... chooses the interpreter.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install build demo test lint bench clean distclean
PYTHON_FILES := dust3r_ros launch test benchmark tools scripts/dust3r_node scripts/dust3r-ros setup.py
IN_ENV := . tools/env.sh &&

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 18

install:  ## Python environment in .venv: ROS from PyPI, or the ROS 2 that is sourced
	@tools/install.sh

build: install  ## messages and workspace, with colcon, in install/
	@tools/build.sh

demo: build  ## a camera topic becomes a map: results in out/demo; BAG=path plays a recording of yours
	@$(IN_ENV) dust3r-ros demo $(if $(BAG),"$(BAG)") --out "$(or $(OUT),out/demo)" $(DEMO_ARGS)

lint: install  ## ruff and mypy
	@$(IN_ENV) ruff check $(PYTHON_FILES)
	@$(IN_ENV) ruff format --check $(PYTHON_FILES)
	@$(IN_ENV) mypy

test: build lint  ## lint, types and all tests; PYTEST_ARGS="-k name" chooses
	@$(IN_ENV) python -m pytest $(PYTEST_ARGS)

bench: build  ## every program in benchmark/: tables here, JSON in out/bench; PACKS="folder ..." are measured
	@tools/bench.sh $(PACKS)

clean:  ## remove what was built and written (not .venv)
	@rm -rf build install log out dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find dust3r_ros test benchmark launch tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and .venv
	@rm -rf .venv

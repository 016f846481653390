# Each target makes .venv when it is missing and installs what it needs at the pinned versions.
# A stock Python 3.11 with its own pip is enough. To start over: rm -rf .venv

PYTHON ?= python3
NAME ?=
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call install,EXTRAS): the package in editable form, with these extras, at the pins.
install = $(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".$(1)"

.DEFAULT_GOAL := help
.PHONY: help demo test lint audit bench named numbers docs build package extras lowest compat clean
.DELETE_ON_ERROR:

help: ## what the targets do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/with-core ## shrink a small trained network to a quarter and show what it costs
	$(BIN)/bozzetto demo $(ARGS)

test: $(VENV)/with-dev ## run the tests (ARGS="-k words" chooses, JOBS=4 takes more processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

lint: $(VENV)/with-dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

audit: $(VENV)/with-dev ## compare the pins with published advisories, without a network service
	$(BIN)/python -m pip download -qq --no-deps --require-hashes --dest build/audit --requirement .ci/advisories.txt
	$(BIN)/python .ci/audit.py build/audit/*.whl constraints.txt

bench: named $(VENV)/with-dev ## run one benchmark: NAME=cifar10-resnet20
	$(BIN)/python benchmarks/run.py $(NAME) $(ARGS)

named:
	@test -n "$(NAME)" || { echo "make bench needs NAME=…, for example NAME=cifar10-resnet20" >&2; exit 2; }

numbers: ## write the measured numbers into the pages; read what that changed
	$(PYTHON) benchmarks/pages.py

docs: $(VENV)/with-docs ## build the pages into docs/_build/html, warnings are errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

build: $(VENV)/with-dev ## build the wheel and the source archive into dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation

package: build ## install the wheel in an empty environment and run the demo there
	$(PYTHON) -m venv --clear $(VENV)-package
	$(VENV)-package/bin/python -m pip install -qq --constraint constraints.txt dist/*.whl
	cd $(VENV)-package && bin/bozzetto demo

extras: package ## install each extra by itself on top of that, and use what it brings
	$(VENV)-package/bin/python -W error .ci/extras.py dist/*.whl

lowest: $(VENV)-lowest/with-all ## run what uses other packages with the oldest versions admitted, but for torch
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest --numprocesses $(JOBS) -W default $(or $(ARGS),$(USES))

oldest: $(VENV)-oldest/with-all ## run all tests with the oldest torch as well (5 GB)
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest --numprocesses $(JOBS) -W default $(ARGS)

# Tests of the modules that import more than torch. Plots grow with their labels from matplotlib 3.11 on.
USES := $(wildcard tests/test_cli*.py tests/regress/test_*.py) $(addprefix tests/, \
	analysis/test_crash_injection.py tangent/test_empirical.py tangent/test_regressor.py \
	test_demo.py test_export.py test_hub.py test_images.py test_io.py test_knapsack.py test_report.py \
	train/test_checkpoint.py train/test_processes.py trajectory/test_loaders.py \
	trajectory/test_trajectory_onnx.py) \
	--deselect tests/test_report.py::test_a_long_label_widens_the_plot_and_is_not_cut_off

$(VENV)-lowest/with-all: PINNED := torch
$(VENV)-%/with-all: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv --clear $(@D)
	$(PYTHON) .ci/lowest.py $(PINNED) > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install -qq --constraint $(@D)/constraints.txt --editable ".[dev$(comma)hf$(comma)data$(comma)train$(comma)dask$(comma)onnx]"
	@touch $@

compat: $(VENV)-compat/with-all ## compress networks of torchvision, timm and transformers (6 GB, slow)
	$(VENV)-compat/bin/python benchmarks/run.py compat
	$(VENV)-compat/bin/python benchmarks/compat_page.py

$(VENV)-compat/with-all: pyproject.toml
	$(PYTHON) -m venv $(VENV)-compat
	$(VENV)-compat/bin/python -m pip install -qq torch==2.14.1 torchvision==0.29.1 timm torch_geometric peft torchao --editable ".[hf,onnx]"
	@touch $@

clean: ## remove what the other targets made, but keep .venv
	rm -rf build dist docs/_build docs/gallery bozzetto-demo .ruff_cache .hypothesis
	find src tests benchmarks examples docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Bozzetto needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=… names another")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/with-core: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,)
	@touch $@

$(VENV)/with-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,[dev$(comma)hf$(comma)data$(comma)train$(comma)dask$(comma)onnx$(comma)interop])
	@touch $@

$(VENV)/with-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,[docs])
	@touch $@

comma := ,

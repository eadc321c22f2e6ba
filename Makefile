# Every command a user needs; `make help` lists them. Each creates or updates .venv by itself.

CONFIG ?= configs/demo.yaml
ARGS ?=
RUN ?=
STORE ?=
PACKAGE ?=
IMAGE ?=
WORK ?= work
PORT ?= 5000
PYTHON ?= python3

# The programs read WORK from the environment.
export WORK

EXTRAS := dev,lpips-weights,n4,fast,dask,onnx,gpu
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
REQUIREMENTS := pyproject.toml constraints.txt

UV_INSTALL := env -u UV_SYSTEM_PYTHON $(PY) -m uv pip install --quiet --python $(PY) \
  --constraint constraints.txt --build-constraint constraints.txt --editable

# STORE names the prepared store in every stage, RUN the run; both default to the config's name.
stage = --config "$(CONFIG)" $(if $(STORE),--prepare.name "$(STORE)")
# A decoder package and the store that an analysis is tried on.
analysed = $(if $(PACKAGE),--package "$(PACKAGE)") $(if $(STORE),--store "$(STORE)")
run = $(if $(RUN),--run "$(RUN)")
# With RUN= and no CONFIG=, a run is scored with the configuration it was trained with.
scored = $(if $(and $(RUN),$(filter file,$(origin CONFIG))),,$(stage))

# Tests must neither write to a user's WORK nor log to a user's MLflow server. A process a core, up
# to four; tests of one file share its fixtures.
PYTEST := env -u WORK -u MLFLOW_TRACKING_URI $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo prepare train evaluate compare ui export reconstruct anomaly lesions \
  lint test test-all bench docs docs-reference wheel clean
# `make prepare train evaluate` is a sequence, under -j too.
.NOTPARALLEL:

help: ## List the commands
	@awk -F ':.*## ' '/^##- / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "With these, where they mean something:"
	@echo "  CONFIG=FILE  the configuration (now $(CONFIG))"
	@echo "  ARGS='…'     overrides of its keys: ARGS='--prepare.root /data/HCP_1200'"
	@echo "  RUN=NAME     name of the run, STORE=NAME of the prepared store (default: the config's)"
	@echo "  PACKAGE=NAME a decoder package (or its folder), of reconstruct, anomaly, lesions"
	@echo "  IMAGE=FILE   the volume that anomaly maps, .nii or .nii.gz"
	@echo "  WORK=DIR     where everything generated goes (now $(WORK))"
	@echo "  PORT=NUMBER  of the MLflow UI (now $(PORT)); PYTHON=FILE makes .venv (now $(PYTHON))"

##- From images to scores
demo: ## Try it: prepare, train and evaluate simulated people, minutes on two cores
	@$(MAKE) --no-print-directory prepare train evaluate CONFIG=configs/demo.yaml

prepare: $(INSTALLED) ## Raw images -> WORK/stores/STORE
	$(PY) -m data_prep $(stage) $(ARGS)

train: $(INSTALLED) ## Prepared store -> WORK/runs/RUN
	$(PY) -m pipeline train $(stage) $(run) $(ARGS)

evaluate: $(INSTALLED) ## Score a run on subjects it has not seen
	$(PY) -m pipeline evaluate $(scored) $(run) $(ARGS)

compare: $(INSTALLED) ## Every reconstruction term at one rate -> WORK/comparisons/RUN
	$(PY) -m pipeline compare $(stage) $(run) $(ARGS)

ui: $(INSTALLED) ## MLflow's pages on 127.0.0.1:PORT, opened at the runs under WORK
	$(PY) -m pipeline ui --port "$(PORT)" $(ARGS)

##- With a trained decoder
export: $(INSTALLED) ## Decoder package of a run -> WORK/packages/RUN
	$(PY) -m pipeline export --run "$(or $(RUN),$(basename $(notdir $(CONFIG))))" $(ARGS)

reconstruct: $(INSTALLED) ## Undersampled or degraded images of STORE under the decoder PACKAGE
	$(PY) -m pipeline reconstruct $(analysed) $(ARGS)

anomaly: $(INSTALLED) ## Where IMAGE= is not what PACKAGE= expects -> WORK/anomaly
	@test -n "$(PACKAGE)" -a -n "$(IMAGE)" || { \
	  echo "error: make anomaly PACKAGE=NAME IMAGE=volume.nii.gz [ARGS='--lesions mask.nii.gz']" >&2; \
	  exit 2; }
	$(PY) -m pipeline anomaly --package "$(PACKAGE)" --image "$(IMAGE)" $(ARGS)

lesions: $(INSTALLED) ## Insert lesions into healthy subjects of STORE, find them with PACKAGE
	$(PY) -m pipeline lesions $(analysed) $(ARGS)

##- Development
lint: $(INSTALLED) ## Style, format, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint ## Lint, then the quick tests
	$(PYTEST) -m "not slow"

test-all: lint ## Lint, then all tests
	$(PYTEST)

bench: $(INSTALLED) ## Speed and time to quality against other VAEs, on WORK/stores/STORE
	@test -n "$(STORE)" || { echo "error: name a prepared store: make bench STORE=hcp64" >&2; exit 2; }
	$(UV_INSTALL) '.[$(EXTRAS),bench]'
	$(PY) benchmarks/training.py --store "$(WORK)/stores/$(STORE)" \
	  $(if $(filter file,$(origin CONFIG)),,--config "$(CONFIG)") $(ARGS)

docs: $(INSTALLED) ## Documentation as a site -> WORK/site
	$(UV_INSTALL) '.[$(EXTRAS),docs]'
	$(PY) docs/site_source.py

docs-reference: $(INSTALLED) ## Write the pages of all keys and of the Python interface from the code
	$(PY) docs/reference.py

wheel: $(INSTALLED) ## A wheel to pip install -> dist
	$(PY) -m build --wheel --no-isolation

clean: ## Remove .venv and caches; what WORK holds stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find data_prep pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp keeps a copy of what was installed: a checkout that only touches the files costs nothing.
# It is written last, so that an interrupted installation starts again.
$(INSTALLED): $(REQUIREMENTS)
	@if $(PY) -c '' 2>/dev/null && cat $(REQUIREMENTS) | cmp -s - $@; then touch $@; exit 0; fi; \
	set -e; \
	rm -f $@; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: Python 3.11 or newer is needed, and $(PYTHON) is not: make PYTHON=FILE" >&2; \
	    exit 2; }; \
	  echo "creating $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo "error: $(PYTHON) -m venv failed: is its package (python3-venv) installed?" >&2; \
	    exit 2; }; \
	fi; \
	echo "installing into $(VENV)"; \
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv; \
	$(UV_INSTALL) '.[$(EXTRAS)]'; \
	cat $(REQUIREMENTS) > $@.part; \
	mv $@.part $@

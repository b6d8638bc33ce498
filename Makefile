# make test and make demo set up all that they need in VENV, from nothing but
# Python 3.11 or newer and the package registries.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo_output
NEXT := .venv-next
NIGHTLY := keras-nightly>=3.16.dev0
# A process a core; one file stays in one, which compiles its kernels once.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile
# TensorFlow logs while it is loaded, whatever it is told: shown on failure.
QUIETLY = 2> $(DEMO)/log || { cat $(DEMO)/log; exit 1; }

.DELETE_ON_ERROR:
.PHONY: test test-all test-next demo install clean

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.check_build
	$(PYTEST) -m "not slow or process"

test-all: install
	$(PYTEST)

# The newest TensorFlow and Keras, released or not. Tests may fail: it is news.
# `keras` and `keras-nightly` are one folder, in which the newer comes last.
test-next:
	$(PYTHON) -m venv --clear $(NEXT)
	$(NEXT)/bin/python -m pip install --quiet --editable '.[dev]' \
	  'tensorflow>=2.21rc0' '$(NIGHTLY)'
	$(NEXT)/bin/python -m pip install --quiet --force-reinstall --no-deps \
	  '$(NIGHTLY)'
	-$(NEXT)/bin/python -m pytest --numprocesses=auto --dist=loadfile \
	  -m "not slow"
	$(NEXT)/bin/python -m pip list | grep --ignore-case 'keras\|tensorflow'

# Inception-V3's training step, placed on two CPU devices of this machine of which
# neither may hold it, runs three steps beside the step that was not placed. Then
# twenty workers train a small model, twelve of them Byzantine.
demo: install $(DEMO)/inception/saved_model.pb
	$(BIN)/baechi place $(DEMO)/inception $(DEMO)/placed --signature train \
	  --cluster configs/clusters/2_cpus.toml --memory-fraction 0.065 \
	  --report $(DEMO)/report --overwrite
	$(BIN)/python -m tools.check_placed $(DEMO)/inception $(DEMO)/placed \
	  --placement $(DEMO)/report/placement.json $(QUIETLY)
	$(BIN)/robust-train --flagfile=configs/train/digits_zeno_majority.flags

$(DEMO)/inception/saved_model.pb: tools/export_models.py \
    tools/training_step.py tools/benchmark_models.py | install
	rm -rf $(@D)
	mkdir -p $(DEMO)
	$(BIN)/python -m tools.export_models --model=inception --preset=tiny \
	  $(@D) $(QUIETLY)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO) $(VENV) $(NEXT)

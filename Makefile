# `make demo` and `make test` do their own set-up in .venv. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
# `make` installs jax for the CPU. For another platform install the extra `cuda` or `tpu` in .venv and name it here.
JAX_PLATFORMS ?= cpu
export JAX_PLATFORMS
# Tests start many processes, none of which need compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
CONSTRAINTS := constraints.txt
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
PINS := pyproject.toml $(CONSTRAINTS)
DEMO := runs/demo
# The beginning of a class, which the demo's model continues.
PROMPT := class Queue:\n    """A queue of lines."""\n\n    def __init__(self, maxsize=0):
# Of a shim of pyenv, which runs only where its version is chosen, the interpreter itself. Another: make colab COLAB_PYTHON=...
COLAB_PYTHON ?= $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls -d $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.13.*/bin/python3.13 2>/dev/null | tail -n 1)

.NOTPARALLEL:
.PHONY: help demo announce-demo test notebooks colab fuzz torture parity lint format clean

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1|/p' Makefile | awk -F '|' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: announce-demo $(VENV)/.installed-demo  ## train a small GPT-2 on Python's own source, evaluate it, sample from it (about 5 minutes)
	$(RUN) train.py configs/gpt2_stdlib.py --directory $(DEMO)
	$(RUN) eval.py $(DEMO)
	$(RUN) -m transformer_zoo generate $(DEMO) --prompt "$$(printf '$(PROMPT)')" --temperature 0.7 --top-p 0.9 --seed 1 --max-new-tokens 160
	@echo
	@echo "All files of the run are in $(DEMO): run.json, the curve, the logs and the checkpoints. Next commands:"
	@echo "  $(RUN) -m transformer_zoo generate $(DEMO) --prompt 'def read_file(path):' --temperature 0.8"
	@echo "  $(RUN) train.py configs/gpt2_stdlib.py --help"

announce-demo:
	@echo "This takes about five minutes on two CPU cores: two to install what it needs, once, and three to train."

test: $(VENV)/.installed-test  ## run the tests
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore=tests/parity $(ARGS)

notebooks: $(VENV)/.installed-test  ## run all notebooks, with small models
	NOTEBOOKS=all $(RUN) -m pytest -n auto --maxprocesses 2 --dist worksteal tests/test_colab.py $(ARGS)

colab:  ## run the notebooks, and the tests that matter there, with the versions of Colab's TPU runtime (Python 3.13)
	@$(or $(COLAB_PYTHON),false) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null || { \
	  echo "Colab's runtime has Python 3.13, which is not here. Name it, for example:"; \
	  echo "  make colab COLAB_PYTHON=/opt/python3.13/bin/python3.13"; exit 1; }
	NOTEBOOKS=all $(MAKE) test VENV=.venv-colab PYTHON=$(COLAB_PYTHON) CONSTRAINTS=constraints-colab.txt \
	  ARGS="@tests/colab.txt $(ARGS)"

fuzz: $(VENV)/.installed-test  ## load 300 mutants of each file of a model
	FUZZ=300 $(RUN) -m pytest -n auto --maxprocesses 4 tests/test_fuzz.py $(ARGS)

torture: $(VENV)/.installed-test  ## 100 kills and faults at random moments; the same command resumes each (about 20 minutes)
	$(RUN) tools/torture.py $(ARGS)

parity: $(VENV)/.installed-parity  ## compare every family with the reference implementation, live, in float64 (installs torch)
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal tests/parity $(ARGS)

lint: $(VENV)/.installed-lint  ## check style and formatting
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

format: $(VENV)/.installed-lint  ## apply the linter's fixes, and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:  ## remove .venv, .venv-colab and caches; runs/ stays
	rm -rf $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/transformer_zoo/tests
	rm -rf $(VENV) .venv-colab build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of requirements: a second call installs nothing. A change of Python, pyproject.toml or
# constraints.txt invalidates every stamp.
$(VENV)/.python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This project needs Python 3.11 or newer; PYTHON=$(PYTHON) is $(or $(VERSION),not there). Name another, for example:"; \
	  echo "  make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12"; exit 1; }
	@if $(RUN) -c 'import pip, platform, sys; sys.exit(platform.python_version() != "$(VERSION)")' 2>/dev/null; then \
	  rm -f $(VENV)/.installed-* $(VENV)/.python-*; \
	else \
	  if [ -d $(VENV) ]; then echo "Rebuilding $(VENV): it was not made by Python $(VERSION)."; fi; rm -rf $(VENV); \
	  echo "Making $(VENV) with Python $(VERSION)."; \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; \
	fi
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.python-$(VERSION) $(PINS)
	@$(PIP) ruff
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.python-$(VERSION) $(PINS)
	@echo "Installing jax and the rest into $(VENV): once, about two minutes."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.python-$(VERSION) $(PINS)
	@echo "Installing jax, the TPU compiler and the test tools into $(VENV): once, about three minutes."
	@$(PIP) -e '.[test]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-parity: $(VENV)/.installed-test
	@echo "Installing torch, transformers and sentence-transformers into $(VENV), which only this comparison needs: once, some minutes."
	@$(PIP) -e '.[test,parity]'
	@touch $@

# make train   installs into VENV, trains CONFIG into WORKDIR, evaluates
# make test    installs into VENV, runs the linter and the tests; LLVM does not optimise compiled
#              programs: here that would take longer than it saves
# make slow    runs the tests that take minutes, with optimised programs, as users run them
# make torture kills training at random moments for 15 minutes and checks that no bit is lost
#
# Another Python beside the first: make test PYTHON=python3.13 VENV=.venv-3.13
# Another CUDA than the one found: make train REQUIREMENTS=requirements.txt VENV=.venv-cuda12
CONFIG ?= configs/default.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
PYTHON ?= python3
VENV ?= .venv

# What VENV was made with; before that, what the NVIDIA driver and every GPU can do.
INSTALLED := $(shell cat $(VENV)/installed 2>/dev/null)
FOUND = $(shell nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null | \
	awk -F', ' '$$1 + 0 >= 525 { gpus++; new += $$1 + 0 >= 580 && $$2 + 0 >= 7.5 } \
		END { if (gpus) print gpus == new ? "requirements-cuda13.txt" : "requirements.txt" }')
REQUIREMENTS ?= $(or $(INSTALLED),$(FOUND),requirements-cpu.txt)
ifneq ($(or $(INSTALLED),$(REQUIREMENTS)),$(REQUIREMENTS))
$(error $(VENV) was made with $(INSTALLED), not $(REQUIREMENTS): delete it, or name another VENV)
endif

train: $(VENV)/installed
	$(VENV)/bin/python train.py --config=$(CONFIG) --workdir="$(WORKDIR)"

torture: $(VENV)/installed
	$(VENV)/bin/python tests/torture.py --minutes=15

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)" $(VENV)/bin/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup -m slow

$(VENV)/installed: $(wildcard requirements*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@echo $(REQUIREMENTS) > $@

.PHONY: train torture test slow

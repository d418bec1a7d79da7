# make train   installs into .venv, trains CONFIG into WORKDIR, evaluates
# make test    installs into .venv, runs the linter and the tests
# make slow    runs the tests that take minutes
# make torture kills training at random moments for 15 minutes and checks that no bit is lost
# make compare trains the configs in COMPARED from three seeds each, writes runs/compare/comparison.md
CONFIG ?= configs/default.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
PYTHON ?= python3
COMPARED ?= default small_stem light cosine contrastive two_channel joint frozen everywhere heldout unseen

REQUIREMENTS := $(if $(shell nvidia-smi 2>/dev/null),requirements.txt,requirements-cpu.txt)

train: .venv/installed
	.venv/bin/python train.py --config=$(CONFIG) --workdir="$(WORKDIR)"

compare: .venv/installed
	for run in $(foreach seed,0 1 2,$(COMPARED:=-$(seed))); do \
		.venv/bin/python train.py --config=configs/$${run%-*}.py --config.seed=$${run##*-} \
			--workdir=runs/compare/$$run || exit 1; \
	done
	.venv/bin/python evaluate.py --workdir=$$(echo runs/compare/*/ | tr ' ' ,)

torture: .venv/installed
	.venv/bin/python tests/torture.py --minutes=15

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -n 2 --dist loadfile

slow: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist load -m slow

.venv/installed: requirements.txt requirements-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

.PHONY: train compare torture test slow

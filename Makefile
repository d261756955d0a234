# `make` lists the targets. Everything runs in .venv, which `make setup` makes; no root is needed.

BIN := .venv/bin

# Interpreters to try, in this order, for a new .venv; `make setup PYTHON=python3.12` names one.
PYTHON ?= python3 python3.13 python3.12 python3.11

# Touched after a complete install: the install is repeated when pyproject.toml or constraints.txt is newer.
STAMP := .venv/installed

INSTALL := install -c constraints.txt -e '.[dev]'

# Exits 0 where the interpreter is one that pyproject.toml allows.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: help setup demo test test-long test-docs test-oldest test-newest lint types format bench-app bench-bucket bench-drift bench-duplicates bench-faults bench-fidelity bench-fuzz bench-imagenet bench-issues bench-loader bench-labeling bench-manifest bench-method bench-packing bench-robustness bench-scale bench-selection bench-soak bench-spark bench-studies \
	bench-storage bench-training reference screenshots wheel clean
.NOTPARALLEL:

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv and install curator there, with all that tests and demo need

demo: setup ## run `curator demo demo`: the whole method on a small problem, in the folder demo
	@echo "demo: running curator demo, which writes the folder demo"
	@$(BIN)/curator demo demo

test: setup ## all checks in order: ruff check, ruff format --check, mypy, pytest
	@echo "test: ruff check, ruff format --check, mypy, pytest"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --maxprocesses 8

test-long: setup ## the tests that take long and seldom break alone, of which CI runs all and `make test` none
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 -m long

test-docs: setup ## run every block of README and docs, as it stands
	$(BIN)/pytest tests/test_docs.py -k "not test_page" --numprocesses 0
	$(BIN)/pytest tests/test_docs.py -k test_page -m '' --numprocesses auto --maxprocesses 4

reference: setup ## write docs/tables.md and docs/commands.md from the code
	$(BIN)/python docs/reference.py

test-oldest: setup ## pytest with the oldest releases that pyproject.toml allows, in .venv-oldest (9 GB, half an hour)
	@test -x .venv-oldest/bin/python || $(BIN)/python -m venv .venv-oldest
	.venv-oldest/bin/python -m pip -qq --disable-pip-version-check install -c constraints-oldest.txt -e '.[test]'
	.venv-oldest/bin/pytest -p no:anyio --ignore tests/test_demo.py --ignore tests/test_confirmation.py --numprocesses auto --maxprocesses 8

test-newest: setup ## pytest with the newest releases there are, in .venv-newest (8 GB, half an hour)
	@test -x .venv-newest/bin/python || $(BIN)/python -m venv .venv-newest
	.venv-newest/bin/python -m pip -qq --disable-pip-version-check install -U --upgrade-strategy eager -e '.[demo,test]'
	.venv-newest/bin/pytest -p no:anyio --numprocesses auto --maxprocesses 8

lint: setup ## ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy
	$(BIN)/mypy

format: setup ## mend what ruff can mend, then format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench-app: setup ## the app on 10M images in a browser (4 GB of disk, fifteen minutes, Chromium)
	$(BIN)/python benchmarks/app.py --write

bench-bucket: setup ## a store in a bucket 30 ms away, beside one in a folder: requests and seconds (three minutes)
	$(BIN)/python benchmarks/bucket.py --write

bench-drift: setup ## questions about two generations of 10M images (1 GB of disk, five minutes)
	$(BIN)/python benchmarks/disagreement.py --write

bench-duplicates: setup ## near-duplicates: recall, false pairs, rates, against others (350 MB of packages, fifteen minutes)
	$(BIN)/python benchmarks/duplicates/run.py --write

bench-faults: setup ## commands killed 200 times each at random moments: is anything lost (an hour)
	$(BIN)/python benchmarks/faults/run.py --write

bench-fidelity: setup ## augmentation against timm on Pillow, in grey levels and dB (two minutes, one package)
	$(BIN)/python benchmarks/fidelity.py --write

bench-fuzz: setup ## all that is read, by 120,000 changed and made inputs (half an hour, one package)
	$(BIN)/python benchmarks/fuzz/run.py --write

bench-imagenet: setup ## a network of 1,000 classes as teacher, through the commands (four minutes, two packages)
	$(BIN)/python benchmarks/imagenet.py --write

bench-issues: setup ## planted label noise: what is found, beside cleanlab, and what mending brings (15 minutes, one package)
	$(BIN)/python benchmarks/issues.py --write

bench-labeling: setup ## labeling engines against the bare network (eight minutes)
	$(BIN)/python benchmarks/labeling.py --write

bench-loader: setup ## the loader against others: images/s, CPU, memory (3 GB of disk, twenty minutes, several packages)
	$(BIN)/python benchmarks/loader/run.py --write

bench-manifest: setup ## soft labels in, manifest out, at 1M images x 1000 classes (5 GB of disk, ten minutes)
	$(BIN)/python benchmarks/manifest.py --write

bench-method: setup ## the method and its controls on Fashion-MNIST, three seeds, runs four times as long (hours)
	$(BIN)/python benchmarks/studies/run.py --studies method --steps 4 --result method --write

bench-packing: setup ## what packing does to pictures and to a network's answers (three minutes, two packages)
	$(BIN)/python benchmarks/packing.py --write

bench-robustness: setup ## attacks and corruptions against other packages, rates (fifteen minutes, ten packages)
	$(BIN)/python benchmarks/robustness.py --write

bench-scale: setup ## sizes, times and cost to 5B images, and 256 ranks that die (2 GB of disk, ten minutes)
	$(BIN)/python benchmarks/scale/scale.py --measure --write

bench-selection: setup ## selection and whole manifests, 1M to 300M rows, against other tools (15 GB, half an hour)
	$(BIN)/python benchmarks/selection/run.py --write

bench-soak: setup ## an hour of labeling, building, reviewing, importing and reading at once: memory, files, invariants
	$(BIN)/python benchmarks/soak/run.py --write

bench-spark: setup ## the same manifests by DuckDB and by Spark, 1M and 10M rows (hours on 2 cores, Java)
	$(BIN)/python benchmarks/spark.py --write

bench-storage: setup ## soft labels on disk: bytes, rates, KL, real and synthetic (2 GB of disk, ten minutes, two packages)
	$(BIN)/python benchmarks/storage.py --write

bench-studies: setup ## the paper's studies on Fashion-MNIST, three seeds (hours)
	$(BIN)/python benchmarks/studies/run.py --jobs 2 --write

bench-training: setup ## training against the bare network loop (ten minutes)
	$(BIN)/python benchmarks/training.py --write

screenshots: setup ## the pictures of the docs, from the demo's store (three minutes, Chromium)
	$(BIN)/python docs/screenshots.py

wheel: setup ## build the wheel into dist
	@echo "wheel: building into dist"
	@rm -rf build curator.egg-info
	@$(BIN)/python -m pip -qq --disable-pip-version-check wheel --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build curator.egg-info
	@ls dist/*.whl

clean: ## remove what builds and tests leave; .venv, demo and stores stay
	@echo "clean: removing build, dist and cache folders"
	@rm -rf build dist curator.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . \( -name .git -o -name .venv \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# An existing .venv is kept when its Python is supported and has pip; otherwise it is made anew.
$(STAMP): pyproject.toml constraints.txt
	@echo "setup: installing into .venv, one to three minutes (about 6 GB on x86_64, most of it torch)"
	@rm -f $@
	@if ! { $(BIN)/python -c '$(SUPPORTED)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	  found=; bare=; \
	  for python in $(PYTHON); do \
	    "$$python" -c '$(SUPPORTED)' >/dev/null 2>&1 || continue; \
	    if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$python; break; fi; \
	    bare=$${bare:-$$python}; \
	  done; \
	  if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "setup: $$bare has no venv or no ensurepip; on Debian and Ubuntu install the package" \
	      "python3-venv, or name another Python: make setup PYTHON=/path/to/python" >&2; exit 2; \
	  elif [ -z "$$found" ]; then \
	    echo "setup: no Python 3.11, 3.12 or 3.13 among: $(PYTHON);" \
	      "install one or name it: make setup PYTHON=/path/to/python" >&2; exit 2; \
	  fi; \
	  "$$found" -m venv --clear .venv || { rm -rf .venv; echo "setup: $$found could not make .venv" >&2; exit 2; }; \
	fi
	@$(BIN)/python -m pip -qq --disable-pip-version-check --no-input $(INSTALL) || \
	  { echo "setup: not installed; for more, run: $(BIN)/python -m pip $(INSTALL)" >&2; exit 1; }
	@touch $@
	@echo "setup: done"

# One toolchain, the same by hand and in CI. Needs only make and Python >= 3.11: not all pins have a release for 3.10.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Whom the demo compares, all untuned; the study tunes all.
PEERS := adamw sam schedule-free hatam
CONTENDERS := $(addprefix --contender ,$(PEERS))

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit format study readme docs gpu-check gpu-study step-cost sanitize clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-16s %s\n", $$1, $$2}'

$(VENV)/bench: pyproject.toml constraints.txt setup.py $(wildcard src/hatam/fused/cpu*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/bench
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/bench ## compare HATAM and its nearest peers, untuned, on MNIST-1D with wrong labels; a table and plots
	$(BIN)/hatam compare --task mnist1d-mlp-noise $(CONTENDERS) --seeds 8 --records runs/demo

test: lint types unit ## everything CI checks

lint: $(VENV)/dev ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev ## strict types on src/
	$(BIN)/mypy

unit: $(VENV)/dev ## tests and doctests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

format: $(VENV)/dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

study: $(VENV)/bench ## the whole study; many hours, resumes
	$(BIN)/hatam study run
	$(BIN)/hatam study table --update docs/results.md

readme: $(VENV)/dev ## render tables and plots of README and docs from the committed records
	$(BIN)/hatam study table --plan study --update docs/results.md
	for script in history step_cost gpu_speed compatibility around around_cost larger gpu_study; do $(BIN)/python benchmarks/$$script.py --render || exit; done
	for script in theory landscape idea; do $(BIN)/python -m research.$$script --render || exit; done

docs: $(VENV)/dev ## build the site, build/site/index.html, without a network
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site

gpu-check: ## on a machine with a GPU and torch, in its own Python: is the GPU kernel right, and how fast
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_check.py

gpu-study: ## on such a machine: AdamW, SAM, Schedule-Free AdamW and HATAM on Fashion-MNIST with a ResNet-18; resumes
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_study.py

step-cost: $(VENV)/dev ## time and memory of a step against torch's AdamW: records and tables; on a quiet machine
	$(BIN)/python benchmarks/step_cost.py

# Python is not built with the sanitizer, so it comes first by LD_PRELOAD, and Python's own leaks are no concern here.
sanitize: $(VENV)/dev ## the CPU kernel's tests under AddressSanitizer and UBSan
	cc -O1 -g -std=c11 -shared -fPIC -ffp-contract=off -DHATAM_ONE_TARGET -fsanitize=address,undefined \
		-fno-sanitize-recover=undefined -o src/hatam/fused/_cpu.so src/hatam/fused/cpu.c -lm
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python -m pytest -q -x -p no:cacheprovider tests/test_fused.py tests/test_fused_layouts.py tests/test_fused_memory.py tests/test_rounding.py \
		-k "not temporaries"; status=$$?; rm src/hatam/fused/_cpu.so; $(PIP) -e . --no-deps; exit $$status

clean: ## remove what was built; records stay
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info

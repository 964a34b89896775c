# Two commands: `make quickstart` and `make test`. Each sets up its own environment when there is none.
#   make test PYTHON=python3.12        another interpreter (3.11 to 3.13)
#   make quickstart BUDGET=4           four times the training

SHELL := /bin/bash
# The first of these that is new enough; set PYTHON to choose another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
BUDGET ?= 1
SEED ?= 0
JOBS ?= 2
# torch is only an oracle for tests; `make test EXTRAS=test` leaves it (and the parity tests) out.
EXTRAS ?= test,torch

.PHONY: help quickstart roadmap test test-slow test-lmms test-lmms-all real pose plan plan-all setup-quickstart setup-test setup-plan clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# $(call environment,EXTRAS): an environment with these extras, made or mended only when needed.
define environment
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found; install one or set PYTHON=..." >&2; exit 2; }
	@stamp="$(VENV)/.installed-$(subst $(comma),-,$(1))"; want="$$(cat pyproject.toml constraints.txt | cksum) $$($(PYTHON) -V)"; \
	if [ -x "$(RUN)" ] && "$(RUN)" -c '' 2>/dev/null && [ "$$(cat "$$stamp" 2>/dev/null)" = "$$want" ]; then exit 0; fi; \
	set -e; \
	if ! { [ -x "$(RUN)" ] && [ "$$("$(RUN)" -V 2>/dev/null)" = "$$($(PYTHON) -V)" ]; }; then \
		echo "creating $(VENV) with $$($(PYTHON) -V)"; rm -rf "$(VENV)"; "$(PYTHON)" -m venv "$(VENV)"; fi; \
	echo "installing spatialllm-jax[$(1)] into $(VENV) (a few minutes the first time)"; \
	"$(RUN)" -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(1)]"; \
	echo "$$want" > "$$stamp"
endef
comma := ,

setup-quickstart:
	$(call environment,quickstart)

setup-test:
	$(call environment,$(EXTRAS))

quickstart: setup-quickstart ## scenes, datasets, two rows of the roadmap, evaluation, a report (about 20 minutes)
	$(RUN) -m launch.quickstart --budget $(BUDGET) --seed $(SEED)

test: setup-test ## lint, types and tests (about 13 minutes on 2 cores)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-slow: setup-test ## the longer proofs
	$(RUN) -m pytest -m slow

# An environment of its own: lmms-eval asks for torchvision, audio and video readers, which no task of the test needs.
# These are what its core imports.
LMMS := loguru accelerate datasets evaluate jsonlines numexpr pytablewriter sacrebleu httpx tenacity python-dotenv openai
test-lmms: ## under lmms-eval: our model class, and its OpenAI classes against the server
	@$(MAKE) --no-print-directory VENV=$(VENV)-lmms test-lmms-all

test-lmms-all: setup-test
	@$(RUN) -c "import lmms_eval" 2>/dev/null || { $(RUN) -m pip install -q -c constraints.txt $(LMMS) && \
		$(RUN) -m pip install -q --no-deps lmms-eval==0.7.3; }
	$(RUN) -m pytest tests/evaluation/test_lmms_model.py tests/serving/test_lmms_openai.py

roadmap: setup-quickstart ## all ten rows of Table 2 at `tiny`, its table and Fig. 6 (at most three hours)
	$(RUN) -m launch.roadmap --budget $(BUDGET) --seed $(SEED)

real: setup-quickstart ## real weights and real photographs; see docs/real.md
	$(RUN) -m launch.fetch_assets --only smollm2,dinov2,meshes --out assets
	$(RUN) -m launch.real --assets assets

pose: setup-quickstart ## a pose estimator on frozen features, scored on meshes it never saw; see docs/pose.md
	$(RUN) -m launch.fetch_assets --only dinov2,meshes --out assets
	$(RUN) -m launch.pose demo --assets assets --out runs/pose

# Compilers of other machines in an environment of their own: elsewhere JAX would look for those machines at every start.
plan: ## stage 2 compiled for GPUs and TPUs that are not here (docs/plan.md); half an hour
	@$(MAKE) --no-print-directory VENV=$(VENV)-plan plan-all

plan-all: setup-plan
	$(RUN) -m launch.plan_targets --out runs/plan

setup-plan:
	$(call environment,plan-tpu$(comma)plan-gpu)

clean: ## removes the environment and runs/
	rm -rf $(VENV) $(VENV)-plan $(VENV)-lmms runs

# Every target makes its own .venv from constraints.txt first, and only when that, pyproject.toml or what is
# compiled changed.
# Needs: python3.11 (with venv) and make. It takes the fastest one at hand; a certain one:
# make PYTHON=/path/to/python3.11 ...

PYTHON ?=
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.redislink-installed
PIP := $(PY) -m pip --disable-pip-version-check
PYTEST_ARGS ?=
# Some images forbid bytecode. Each process that a demo or a test starts would then compile redislink again.
unexport PYTHONDONTWRITEBYTECODE
# Processes that run tests at the same time; 0: one test after the other. More than two for each of two
# cores: many tests wait, for a process to start or a line to fall silent.
WORKERS ?= 5
SOURCES := redislink tests examples hatch_build.py .ci/release $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check lint types format lock clean bench bench-mplang docs
.PHONY: example-millionaire example-psi example-logistic-regression example-mlp example-kmeans

help:  ## show this list
	@grep -hE '^[a-z][a-z-]*:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{ printf "  make %-30s %s\n", $$1, $$2 }'

venv: $(STAMP)  ## make .venv (each target below does it by itself)

$(STAMP): pyproject.toml constraints.txt hatch_build.py redislink/_native.c
	@python=$$(.ci/fastest-python $(PYTHON)) || exit 1; \
	  grep -qsx "home = $$(dirname $$python)" $(VENV)/pyvenv.cfg || clear=--clear; \
	  .ci/tell "1 of 3: $(VENV), with $$python" "$$python" -m venv $$clear $(VENV)
	@.ci/tell "2 of 3: what installs and builds packages" \
	  $(PIP) install --quiet --constraint constraints.txt pip hatchling editables
	@.ci/tell "3 of 3: redislink, and some hundred packages in the versions that were tested" \
	  $(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## three processes train a model through an embedded broker
	@mkdir -p build
	@$(PY) -m redislink demo --report build/demo-report.html

.PHONY: demo-jobs
demo-jobs: $(STAMP)  ## three agents wait, a driver submits the training, a person approves it (YES=: asks you)
	$(PY) -m redislink demo --jobs $(YES)

YES ?= --yes

# Each runs all parties of one example on this machine, through an embedded broker.
THREE := $(PY) examples/run_three.py
OUT := build/examples

example-millionaire: $(STAMP)  ## who is richest?
	$(THREE) --for alice '--wealth 3' --for bob '--wealth 5' --for carol '--wealth 4' \
	  examples/millionaire.py

example-psi: $(STAMP)  ## which patients do two hospitals share?
	$(THREE) examples/psi.py --input 'examples/data/{party}.csv' --output $(OUT)

example-logistic-regression: $(STAMP)  ## train one model on the data of two hospitals
	$(THREE) examples/logistic_regression.py --plaintext

example-mlp: $(STAMP)  ## a vendor's neural network judges the patients of two hospitals
	$(THREE) examples/mlp.py

example-kmeans: $(STAMP)  ## groups of patients by the measurements of two hospitals
	$(THREE) examples/kmeans.py

test: $(STAMP)  ## the whole test suite
	@# In a fresh checkout each worker would compile all tests; so two processes do it before.
	@test -d tests/__pycache__ || find tests -name 'test_*.py' | \
	  xargs -n 170 -P 2 $(PY) -m pytest --collect-only -qq > /dev/null || true  # pytest says it below
	$(PY) -m pytest --durations=10 -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

.PHONY: coverage
coverage: $(STAMP)  ## how much of redislink/ the quick tests run; fails below the floor in pyproject.toml
	$(PY) -m pytest -q -n $(WORKERS) -m 'not slow' --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

.PHONY: chaos soak
chaos: $(STAMP)  ## break real brokers and lines and kill parties on purpose; writes docs/reliability.md (minutes)
	$(PY) -m benchmarks.chaos

soak: $(STAMP)  ## 100,000 simulated runs of the delivery core, 5,000 of jobs
	$(PY) -m tests.protocol.simulation --runs 100000
	$(PY) -m tests.jobs.simulation --count 5000

# Some modules, all of their mutants: make mutation MUTATION_ARGS="protocol/states --most 10000"
MUTATION_ARGS ?=
.PHONY: mutation
mutation: $(STAMP)  ## which changes of the code do the tests not notice? build/mutation.md
	$(PY) -m tests.mutation $(MUTATION_ARGS)

# Some jobs only, or checkouts of the sources: make acceptance ACCEPTANCE_ARGS="brpc --sources DIR"
ACCEPTANCE_ARGS ?=
.PHONY: acceptance
acceptance: $(STAMP)  ## other people's programs and tests over redislink, unchanged; fetches their sources
	$(PY) -m tests.acceptance $(ACCEPTANCE_ARGS)

check: lint types test  ## everything that CI checks

lint: $(STAMP)  ## ruff: rules and format
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)

types: $(STAMP)  ## mypy, strict, on redislink/
	$(PY) -m mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix $(SOURCES)
	$(PY) -m ruff format $(SOURCES)

# All groups, options and what they mean: $(PY) -m benchmarks --help
BENCH_ARGS ?=

bench: $(STAMP) bench-mplang  ## some 25 minutes on 2 cores: measure all, write docs/performance.md (BENCH_ARGS=--quick: 4 minutes)
	$(PY) -m benchmarks $(BENCH_ARGS)

.PHONY: instructions
instructions: $(STAMP)  ## does the core need more instructions per message than recorded? needs valgrind
	$(PY) -m benchmarks.instructions --check

# MPLang has an interpreter of its own, as it brings a hundred packages; without it, `bench` leaves it out.
MPLANG := build/mplang
bench-mplang: $(STAMP)
	@test -e $(MPLANG)/.installed || { $(PY) -m venv $(MPLANG) \
	  && $(MPLANG)/bin/python -m pip --disable-pip-version-check install --quiet --retries 1 \
	    --constraint constraints.txt mplang-nightly==0.1.dev343 spu psutil \
	  && touch $(MPLANG)/.installed; } || echo "mplang-nightly is not to be had here: not measured" >&2

# Silences an advertisement that Material prints at each start.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs
.PHONY: docs-serve
docs: $(STAMP)  ## the site, with the Python reference: build/docs/index.html, works from disk
	$(MKDOCS) build --quiet
	@echo build/docs/index.html

# The pages whose text is in the code; tests say when one of them is older than that.
.PHONY: docs-pages
docs-pages: $(STAMP)  ## write docs/settings.md, commands.md, … anew from the code
	for page in cluster_file job_files settings commands schemas pictures; do \
	  $(PY) docs/make_$$page.py || exit 1; done
	$(PY) tests/test_env_example.py

SERVE_ARGS ?=
docs-serve: $(STAMP)  ## the site at http://127.0.0.1:8000, made anew when a page changes
	$(MKDOCS) serve $(SERVE_ARGS)

# An environment of its own: what checks a release comes near nothing that is released.
RELEASE := build/release-venv
$(RELEASE)/.installed: pyproject.toml constraints.txt | $(STAMP)
	$(PY) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt pip
	$(RELEASE)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --group release
	@touch $@

.PHONY: alerts helm release-check bundle bundle-check
alerts:  ## promtool: the alert rules are valid, and say what they should about runs that were made up
	@promtool=$$(.ci/install-promtool) && cd deploy/monitoring \
	  && $(CURDIR)/$$promtool check rules redislink.rules.yml \
	  && $(CURDIR)/$$promtool test rules redislink.rules.test.yml

helm: $(RELEASE)/.installed  ## the chart: linted, rendered, held against the manifests
	$(RELEASE)/bin/python .ci/release helm

release-check: $(RELEASE)/.installed  ## is this commit fit to be a release? a few minutes; writes build/release
	$(RELEASE)/bin/python .ci/release check

bundle: $(RELEASE)/.installed docs  ## all that a site without internet needs, in one archive: build/bundle
	$(RELEASE)/bin/python .ci/release bundle

bundle-check: $(RELEASE)/.installed  ## install the bundle where no index can be reached, and run the demo there
	$(RELEASE)/bin/python .ci/release bundle-check

lock:  ## write constraints.txt and deploy/requirements*.txt anew, with the newest versions
	.ci/lock $$(.ci/fastest-python $(PYTHON))

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

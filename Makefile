# Every recipe makes what it needs: a .venv with this project in it, renewed when pyproject.toml changes.
# Needed beforehand: make and Python >= 3.11. CI runs these same recipes (.ci/run).

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
  $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

# Four processes, each with servers of its own, keep two cores busy: tests wait for more than half of their time.
# In the order of the folders: the last files are short ones. PYTEST_ARGS="-n 0 -k name" for one test.
PYTEST_ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder

# The oldest redis-py that the project supports together with arq, tested in an environment of its own.
REDIS5 := redis==5.3.1
REDIS5_TESTS = tests/unit tests/conformance tests/scheduling \
  'tests/docs/test_snippets.py::test_the_programs_of_a_page_run_and_print_what_it_says[docs/howto/schedule-runs.md]'

# A quick form leaves one server out: what redis-py sends and reads is the same for both.
REDIS5_PLACES = -k 'not valkey'

# The suite starts hundreds of programs: they may keep what they compile.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv/.installed
VENV_DOCS := .venv/.installed-docs
VENV_REDIS5 := .venv-redis5/.installed

# What `make simulate` runs.
SEEDS ?= 1000
START ?= 0

# Scripts are checked as Redis sees them: put together from their parts.
ASSEMBLE_LUA := import pathlib; from stepfleet.storage.scripts import PARTS, script; \
  out = pathlib.Path(".lua-check"); out.mkdir(exist_ok=True); \
  [(out / f"{name}.lua").write_text(script(name).source) for name in PARTS]

.PHONY: help demo test test-all test-acl features test-redis5 simulate chaos check check-lua fmt bench docs clean
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV) ## a workflow on several workers, start to end
	.venv/bin/python examples/demo/run.py

test: $(VENV) ## the quick suite
	.venv/bin/pytest $(PYTEST_ARGS) -m "not slow"

test-all: REDIS5_PLACES =
test-all: $(VENV) test-redis5 test-acl ## everything, slow tests, redis-py 5 and the users of `acl` too
	.venv/bin/pytest $(PYTEST_ARGS)

test-acl: $(VENV) ## what uses a server, as the users that `stepfleet acl` prints
	TEST_ACL=1 .venv/bin/pytest $(PYTEST_ARGS) -m "not slow" -k "redis or valkey" tests/conformance
	TEST_ACL=1 .venv/bin/pytest $(PYTEST_ARGS) -m "not slow" tests/process tests/chaos tests/bad_input tests/trust

test-redis5: $(VENV_REDIS5) ## the behavioural subset on redis-py 5 with arq
	.venv-redis5/bin/pytest $(PYTEST_ARGS) -m "not slow" $(REDIS5_PLACES) $(REDIS5_TESTS)

features: $(VENV) ## the features of the programming model in all places, and the page docs/features.md
	.venv/bin/pytest $(PYTEST_ARGS) tests/model
	.venv/bin/pytest -n 0 -p no:stepfleet -p tests.model.on_the_model --confcutdir tests/model tests/model
	.venv/bin/python -m tests.model.table

simulate: $(VENV) ## seeded simulations of a fleet under faults: SEEDS=1000, SEED=n with its trace, MUTANTS=1
	PYTHONPATH=. .venv/bin/python -m tests.simulation $(if $(MUTANTS),--mutants,$(if $(SEED),--seed $(SEED),\
	  --seeds $(SEEDS) --start $(START)))

chaos: $(VENV) ## faults on real processes, and their table in docs/guarantees.md: SCENARIO=F7 for one, MINUTES=30
	PYTHONPATH=. .venv/bin/python -m tests.chaos$(if $(MINUTES),.soak --minutes $(MINUTES), $(SCENARIO))

check: $(VENV) check-lua ## lint, format, types, layers, Lua, spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/codespell

check-lua: $(VENV)
	@rm -rf .lua-check
	@.venv/bin/python -c '$(ASSEMBLE_LUA)'
	@if command -v luacheck >/dev/null; then luacheck --quiet .lua-check; \
	elif [ -n "$$CI" ]; then echo "luacheck is missing: apt-get install lua-check" >&2; exit 1; \
	else echo "luacheck is missing, the Lua scripts are not checked (Debian: lua-check)"; fi

fmt: $(VENV) ## format and fix what can be fixed
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

bench: $(VENV) ## measure this machine beside peers: QUICK=1, ONLY=W1,W3, PEERS=arq,saq, ROUNDS=7
	PYTHONPATH=. QUICK=$(QUICK) ONLY=$(ONLY) PEERS=$(PEERS) ROUNDS=$(ROUNDS) .venv/bin/python -m benchmarks.bench

docs: $(VENV_DOCS) ## build the documentation into site/
	.venv/bin/zensical build --clean --strict

clean: ## remove what the recipes made
	rm -rf .venv .venv-redis5 .venv-bench-* .lua-check site

.venv/bin/python:
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ...))
	$(PYTHON) -m venv .venv

$(VENV): pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,embedded]'
	@touch $@

$(VENV_DOCS): $(VENV)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

.venv-redis5/bin/python:
	$(if $(PYTHON),,$(error Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 ...))
	$(PYTHON) -m venv .venv-redis5

$(VENV_REDIS5): pyproject.toml Makefile | .venv-redis5/bin/python
	.venv-redis5/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev,embedded,arq]' '$(REDIS5)'
	@touch $@

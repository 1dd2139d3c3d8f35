# make sets up and says what there is. Everything runs in .venv, which .ci/venv makes from the
# hash-locked requirements.lock with any Python >= 3.11 it finds (make PYTHON=/path/to/python3
# to choose one). Nothing here names the checkout's own path: make splits names at spaces, the
# shell, with relative paths, does not care.
#
# ARGS go to the program behind a target: make test ARGS="-k replay -x"

# Set here, so that nothing of that name in the environment is taken for them.
ARGS =
SEED =
MINUTES =
SAGAS =
VERSION =
TOPOLOGY =
PYTEST = .venv/bin/python -m pytest
# Most tests wait for a server, so six at a time keep two cores busy. Each has servers of its own.
JOBS = 6

# Without bytecode each of the many processes of a test run would compile what it imports.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV __PYVENV_LAUNCHER__ PYTHONDONTWRITEBYTECODE

.PHONY: all help setup demo dev test test-docker chaos bench lint format docs lock release clean

all: setup help

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 /p' Makefile | \
	    awk '{ name = $$1 " " $$2; $$1 = $$2 = ""; printf "  %-18s%s\n", name, $$0 }'

setup: ## make .venv, or bring it up to date (every target below does that first)
	@sh .ci/venv

demo: setup ## watch a saga succeed, fail, be undone and survive a kill, on real servers
	@.venv/bin/evosaga demo $(ARGS)

dev: setup ## everything on the embedded servers, until Ctrl-C
	@.venv/bin/evosaga dev $(ARGS)

test: setup ## the whole test suite on the embedded servers
	@$(PYTEST) -n $(JOBS) --dist worksteal $(ARGS)

test-docker: setup ## the same suite on servers in Docker containers
	@$(PYTEST) --servers=docker $(ARGS)

chaos: setup ## break everything at random, and check what is left (SEED= MINUTES= SAGAS= VERSION= TOPOLOGY=cluster|standby)
	@$(PYTEST) -m long
	@.venv/bin/python -m tests.harness.chaos $(if $(SEED),--seed "$(SEED)") \
	    $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(SAGAS),--sagas "$(SAGAS)") \
	    $(if $(VERSION),--version "$(VERSION)") $(if $(TOPOLOGY),--topology "$(TOPOLOGY)") $(ARGS)

bench: setup ## how fast it is, as ratios within one run (ARGS="--help" says what can be chosen)
	@.venv/bin/python -m tests.harness.bench $(ARGS)

lint: setup ## ruff, mypy (strict) and the arrows between the packages
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy
	@.venv/bin/lint-imports

format: setup ## let ruff put the source in order
	@.venv/bin/python -m ruff check --fix .
	@.venv/bin/python -m ruff format .

docs: setup ## the reference from the code, and the site where MkDocs Material is installed
	@.venv/bin/python -m tests.harness.documentation
	@if .venv/bin/python -c "import material" 2>/dev/null; \
	then NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet --config-file .ci/mkdocs.yml && echo "the site is in .site/"; \
	else echo "for the site: .venv/bin/pip install 'mkdocs-material>=9.7,<10'"; fi

# The lock serves every platform and Python we promise, so it takes a resolver that looks at all
# of them at once; pip sees only the machine it runs on.
lock: ## renew requirements.lock after a change in pyproject.toml (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --quiet --output-file requirements.lock $(ARGS)

release: setup ## build, check and describe what would be published, in dist/; publish nothing
	@.venv/bin/python .ci/release.py

clean: ## remove .venv and every cache
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .site dist build
	@find . -name __pycache__ -prune -exec rm -rf {} +

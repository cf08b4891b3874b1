# The commands of a working day; each sets up what it needs in .venv, once.
#   make demo      the main job on data that ships with a dependency
#   make test      the test suite
#   make lint | types | doctest | docs    one gate each
#   make check     everything that continuous integration runs
#   make clean     remove .venv and everything built
# PYTHON chooses the interpreter that .venv is made from: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The demo's and the tests' tensors are tiny: on a busy machine a second thread makes them several times slower.
export OMP_NUM_THREADS ?= 1
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types doctest docs check clean

demo: $(VENV)/run.stamp
	$(BIN)/pyro-flows-vi demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

doctest: $(VENV)/test.stamp
	$(BIN)/python -m pytest --doctest-modules pyro_flows_vi

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
	@echo "the pages are in docs/_build/html"

check:
	.ci/run

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was installed from, or the install runs again.
$(VENV)/venv.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or newer, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1): say make PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/venv.stamp
	@echo "installing into $(VENV) (once; torch is large)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(INSTALL) -e ".[test]"
	@touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	$(INSTALL) -e ".[docs]"
	@touch $@

# Two commands do everything on a fresh clone; each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow fuzz lint env clean

demo: $(VENV)/.ready
	$(VENV)/bin/python -m multiway.demo

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -n 2 -m "not slow and not gpu and not fuzz" $(ARGS)

slow: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -n 2 -m "slow and not gpu and not fuzz" $(ARGS)

fuzz: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -n 2 -m fuzz $(ARGS)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy -p multiway
	$(VENV)/bin/lint-imports

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch numpy
	$(INSTALL) -e ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

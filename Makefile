# `make app` on a fresh machine: environment, database, dashboard. `make test`: the tests' Python packages, then the tests.
# Chromium, PostgreSQL, Orthanc and DICOM tools come from the system (the packages that .ci/run names), the data set from
# `brainmri data fetch`; a test that misses one is skipped and says so. Two processes test, file by file; what measures time
# comes after them, alone.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8501
# A .venv that works is kept; one that another Python made, or that stopped before it had pip, is made anew.
FITS := import sys; (3, 11) <= sys.version_info[:2] < (3, 14) or sys.exit("brainmri needs Python 3.11 to 3.13, and \
	$(PYTHON) is %d.%d; name another, as in: make app PYTHON=python3.12" % sys.version_info[:2])

.PHONY: app env test-env test check clean

app: env
	$(BIN)/streamlit run Home.py --server.port $(PORT)

env: .venv/.core
test-env: .venv/.tests

.venv/.core: requirements.txt pyproject.toml
	@{ $(BIN)/python -c '$(FITS)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 \
		|| { $(PYTHON) -c '$(FITS)' && $(PYTHON) -m venv --clear .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.tests: .venv/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt --editable ".[dev,optimize,scale,postgres]"
	touch $@

test: test-env
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone

check: test-env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info

# The two commands of the README: `make quickstart` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/quickstart.stamp
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=$${ACCELERATE_USE_CPU:-1} $(BIN)/bivrec quickstart --overwrite

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) quickstart build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is renewed when the dependencies change.
$(VENV)/quickstart.stamp: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[images,plots]"
	touch $@

$(VENV)/test.stamp: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,lint]"
	touch $@

PYTHON ?= python3
VENV ?= .venv

.PHONY: digits test clean

# The main job on a data set that needs no download: a few minutes on two cores.
digits: $(VENV)/installed
	$(VENV)/bin/python experiments.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

clean:
	rm -rf $(VENV)

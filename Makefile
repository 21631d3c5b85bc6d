PYTHON ?= python3
VENV ?= .venv

.PHONY: digits test lint clean

JOBS = $$($(VENV)/bin/python -c "import os; \
    print(min(2, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()))")

# The main job on a data set that needs no download, by the paper's method and by this project's best
# recipe for so little: three minutes on two cores, and the installation.
digits: $(VENV)/installed
	$(VENV)/bin/python experiments.py --jobs $(JOBS)
	$(VENV)/bin/python experiments.py --recipe best_small --results-dir runs/best_small --beside runs \
	    --jobs $(JOBS)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --requirement requirements-dev.txt
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

clean:
	rm -rf $(VENV)

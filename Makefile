# Everything starts from a clean checkout: the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a CPU build of torch is enough for the demo and the tests
TORCH := $(shell grep '^torch==' constraints.txt)
SOURCES := smope_hf examples tests
# waiting threads that spin slow each other down many times on a machine that is not all ours
export OMP_WAIT_POLICY ?= passive
export NO_MKDOCS_2_WARNING ?= 1

# the lowest versions that are allowed have a virtual environment of their own
OLDEST_VENV ?= .venv-oldest
OLDEST_STAMP := $(OLDEST_VENV)/.installed
OLDEST_TESTS := $(addprefix tests/,$(addprefix models/test_,model.py model_saving.py prefix_attention.py prefix_experts.py prefix_losses.py) \
	sharing/test_checkpoint.py sharing/test_older_checkpoints.py training/test_trainer.py)

AUDIT_VENV ?= .venv-audit
AUDIT_STAMP := $(AUDIT_VENV)/.installed

.PHONY: demo space test test-slow test-oldest quality style docs dist audit clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet $(TORCH)
	$(RUN)/pip install --quiet --constraint constraints.txt --editable ".[dev,docs,trackers,export,demo]"
	touch $(STAMP)

demo: $(STAMP)  ## learn handwritten digits task after task, and use the result
	$(RUN)/python examples/demo.py

space: $(STAMP)  ## look into checkpoints and teach them, in the browser
	$(RUN)/python examples/space/app.py

test: $(STAMP)  ## run the tests
	$(RUN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)  ## run those that train for more than a few seconds
	$(RUN)/python -m pytest -q -n 2 --dist worksteal -m slow

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet $(shell grep '^torch==' constraints-oldest.txt)
	$(OLDEST_VENV)/bin/pip install --quiet --constraint constraints-oldest.txt --editable . pytest pytest-timeout pytest-xdist
	touch $(OLDEST_STAMP)

test-oldest: $(OLDEST_STAMP)  ## run the core tests with the lowest versions that are allowed
	$(OLDEST_VENV)/bin/python -m pytest -q -n 2 -m "not slow" $(OLDEST_TESTS)

# with --quiet, mkdocs counts no warning, and --strict has nothing to fail for
quality: $(STAMP)  ## check style and build the documentation
	$(RUN)/ruff check $(SOURCES)
	$(RUN)/ruff format --check $(SOURCES)
	$(RUN)/mkdocs build --strict

style: $(STAMP)  ## bring the sources into style
	$(RUN)/ruff check --fix $(SOURCES)
	$(RUN)/ruff format $(SOURCES)

docs: $(STAMP)  ## build the documentation into site/
	$(RUN)/mkdocs build --strict

dist: $(STAMP)  ## build the wheel and the sdist into dist/; tests/house/test_dist.py installs and tries both
	rm -rf dist build *.egg-info  # what an earlier build left would go along
	$(RUN)/python -m build --no-isolation

$(AUDIT_STAMP): Makefile
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --quiet "pip-audit>=2.10,<3"
	touch $(AUDIT_STAMP)

audit: $(STAMP) $(AUDIT_STAMP)  ## look up known vulnerabilities of what is installed; for a schedule, needs the network
	$(AUDIT_VENV)/bin/python .ci/audit $(RUN)/python

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(AUDIT_VENV) site build dist *.egg-info

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

.PHONY: demo space test test-slow quality style docs clean

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
	$(RUN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(STAMP)  ## run those that train for more than a few seconds
	$(RUN)/python -m pytest -q -n 2 -m slow

quality: $(STAMP)  ## check style and build the documentation
	$(RUN)/ruff check $(SOURCES)
	$(RUN)/ruff format --check $(SOURCES)
	$(RUN)/mkdocs build --strict --quiet

style: $(STAMP)  ## bring the sources into style
	$(RUN)/ruff check --fix $(SOURCES)
	$(RUN)/ruff format $(SOURCES)

docs: $(STAMP)  ## build the documentation into site/
	$(RUN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build *.egg-info

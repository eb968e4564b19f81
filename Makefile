# Every target makes .venv by itself when it is missing or older than pyproject.toml and constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test coverage test-campaign test-encoding fuzz-encoding test-data-faults test-faults test-elastic test-exports test-gpu test-cluster lint format bench bench-data bench-large bench-model clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(READY)  ## make .venv with the pinned packages

$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "setup: no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@command -v g++ >/dev/null || { echo "setup: g++ is missing (DeepSpeed compiles with it); install it, on Debian: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
	  || { echo "setup: $(PYTHON) has no Python.h (DeepSpeed compiles with it); install its headers, on Debian: apt-get install python3-dev"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "setup: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup: installing into .venv, about 2.5 GB: two to five minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## the whole job on two CPU cores: text, shards, training, export, proof, MLflow (again: resumes)
	$(BIN)/smollm2 pipeline run configs/data/demo.yaml
	CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu $(BIN)/smollm2 launch train configs/train/demo.yaml
	$(BIN)/smollm2 checkpoint serve --once runs/demo
	$(BIN)/smollm2 launch generate runs/demo "def main():" --max-new-tokens 64 | tee runs/demo/sample.txt
	@echo
	@echo "dataset     data/demo"
	@echo "checkpoint  runs/demo/checkpoints/$$(cat runs/demo/checkpoints/latest)"
	@echo "export      $$(ls -d runs/demo/exports/step-* | tail -1), with its proof.json"
	@echo "pictures    runs/demo/loss_curve.png, and the MLflow page:"
	@echo "            $(BIN)/mlflow ui --backend-store-uri sqlite:///runs/demo/mlflow.db"

test: $(READY)  ## all tests that a machine with two cores and no GPU can run
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: $(READY)  ## the same tests, and which lines they run
	$(BIN)/python -m pytest --cov -n 2 --dist loadfile --no-loadscope-reorder

test-campaign: $(READY)  ## long tests at real sizes, some ten minutes; the longer ones follow, each by itself
	$(BIN)/python -m pytest -m campaign -s --ignore=tests/pipeline/test_fault_campaign.py \
	  --ignore=tests/pipeline/tokenizer/test_campaign.py --ignore=tests/integration/test_elastic_campaign.py \
	  --ignore=tests/checkpoint/test_other_loaders.py --ignore=tests/faults

test-elastic: $(READY)  ## 60 steps on two ranks, and the same killed and gone on with on one, three and two
	$(BIN)/python -m pytest -m campaign -s tests/integration/test_elastic_campaign.py

test-exports: $(READY)  ## exports under transformers 4.46 and 4.57, CTranslate2 and lm-eval, which pip is asked for
	$(BIN)/python -m pytest -m campaign -s tests/checkpoint/test_other_loaders.py

fuzz-encoding: export FUZZ_SECONDS ?= 3600
fuzz-encoding: $(READY)  ## random texts through both encoding engines, for FUZZ_SECONDS=3600
	$(BIN)/python -m pytest -m campaign -s tests/pipeline/tokenizer/test_campaign.py -k fuzz

test-encoding: $(READY)  ## all ids of 100 MB of mixed text against tokenizers, some ten minutes
	$(BIN)/python -m pytest -m campaign -s tests/pipeline/tokenizer/test_campaign.py -k 100_mb

test-data-faults: $(READY)  ## over 100 random kills of data runs, over all executors: equal bytes each time
	$(BIN)/python -m pytest -m campaign -s tests/pipeline/test_fault_campaign.py

test-faults: $(READY)  ## over 200 random kills of trainers, of the service at each of its jobs and of MLflow, some 6 minutes
	$(BIN)/python -m pytest -m campaign -s tests/faults/test_kills.py

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-cluster: $(READY)  ## two nodes in network namespaces: root, and Debian's iproute2 openssh-server pdsh
	$(BIN)/python -m pytest -m cluster -rs tests/cluster

lint: $(READY)  ## ruff, mypy --strict, codespell, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell *.md Makefile Dockerfile pyproject.toml pipeline model launch checkpoint configs tests benchmarks docs
	$(BIN)/hadolint Dockerfile

format: $(READY)  ## ruff, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the benchmarks: a table each, with peers beside us
	@for name in encoding filtering deduplication lost_work data_order loader loss activation_checkpointing training supervision reshard \
	  checkpoints checkpoint_saves service_poll shipping; do \
	  echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done

bench-data: PEER_PYTHON ?= $(BIN)/python
bench-data: $(READY)  ## text to dataset, filters, deduplication; with peers from PEER_PYTHON's environment
	PYTHONPATH=$(CURDIR) $(PEER_PYTHON) benchmarks/encoding.py --megabytes 48
	PYTHONPATH=$(CURDIR) $(PEER_PYTHON) benchmarks/encoding.py --megabytes 180 --contenders "ours, splintr" "splintr alone" datatrove
	PYTHONPATH=$(CURDIR) $(PEER_PYTHON) benchmarks/encoding.py --megabytes 48 500 --rounds 11 --contenders "ours, splintr" "splintr alone"
	$(BIN)/python benchmarks/filtering.py --peer-python $(PEER_PYTHON)
	$(BIN)/python benchmarks/deduplication.py --peer-python $(PEER_PYTHON) --documents 1000000

bench-large: $(READY)  ## 20 GB of text to a dataset, some ten minutes and 12 GB of disk: rate and memory, first to last
	$(BIN)/python benchmarks/large_corpus.py --gigabytes 20

bench-model: $(READY)  ## training steps beside transformers and FSDP2, on these cores; on a GPU the sweep, 10 minutes
	$(BIN)/python benchmarks/$$($(BIN)/python -c 'import torch; print("training_sweep" if torch.cuda.is_available() else "training")').py

clean:  ## remove what the demo made
	rm -rf data/demo runs/demo

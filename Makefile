# Every target is a line that can be typed by hand.
# `make demo` and `make test` do everything on a fresh machine; PYTHON selects another interpreter.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Where `make demo` writes its record: time of each stage and the table. docs/records for one that is published.
RECORDS ?= demo/results/records

.PHONY: setup demo studies studies-ratio studies-arena studies-short records gpu gpu-wheels test test-faults test-slurm test-container test-full-size lint docs clean

setup:  ## the environment .venv from envs/requirements.lock; skipped when nothing changed
	@envs/setup.sh $(PYTHON) .venv

demo: setup  ## the whole pipeline on embedded digits, to demo/results/report/index.html
	@onestep bench workflow --config demo/config.yaml --name demo --record $(RECORDS) -- snakemake --directory demo --profile profiles/local

studies: setup  ## the studies of the papers at a size for CPUs, and docs/studies.md: hours; it continues where it was stopped
	@snakemake --directory studies --profile profiles/local && python docs/tools/studies.py

studies-ratio: setup  ## those of density ratios and of initial weights, into docs/ratio_studies.md: hours; it continues likewise
	@snakemake --directory studies/ratio --profile profiles/local --config experiment=../ratio.yaml && python docs/tools/studies.py ratio

studies-arena: setup  ## one-step methods side by side, into docs/arena.md: hours; it continues likewise
	@snakemake --directory studies/arena --profile profiles/local --config experiment=../arena.yaml && python docs/tools/studies.py arena

studies-short: setup  ## the same with one training seed and few images, undecided by design, about 20 minutes
	@snakemake --directory studies/short --profile profiles/local --config experiment=../short.yaml

records: setup  ## the pages of the records in docs/records, after new ones
	@python docs/tools/records.py

gpu:  ## correctness, speed and evaluation on a GPU of this machine, ten minutes each; PART=speed for one; LIMIT=300 seconds for less
	@PYTHON=$(PYTHON) tests/gpu/run.sh $(PART) $(if $(LIMIT),--seconds $(LIMIT))

gpu-wheels: setup  ## what a GPU machine without a network may lack, into .gpu, to be copied there with this folder
	@tests/gpu/wheels.sh

test: setup lint  ## all tests
	@python -m pytest -n 2

test-faults: setup  ## damaged files, killed pipelines, mutated configs: half an hour; ONESTEP_ATTACK=FILE writes the figures
	@python -m pytest -m "faults or not faults" -n 2 tests/faults && python -m pytest -m long -n 2 tests/training tests/workflow tests/evaluation

test-slurm: setup  ## trainings and rules as jobs of a real SLURM on this machine: needs root and tests/slurm/cluster/packages
	@ONESTEP_SLURM=required python -m pytest -m slurm --durations 0 $(PYTEST_OPTIONS) tests/slurm/test_[!f]*.py tests/slurm/test_faults_on_slurm.py

test-container: setup  ## the image, built by buildah without a registry, and tried: needs root, debootstrap, buildah and 25 GB of disk
	@python -m pytest -m container -s tests/containers

test-full-size: setup  ## three steps of each of the paper's recipes on this CPU: ten minutes, 7 GB of memory, 3 GB of disk
	@python -m pytest -m full_size

lint: setup  ## style, types, import contracts, rules, prose
	@ruff check . && ruff format --check . && lint-imports && snakefmt --check Snakefile workflow && mypy && snakemake --lint --directory demo && python tests/tools/word_list.py

docs: setup  ## the documentation, to site/index.html; generated reference, no broken link
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet --strict && echo "site/index.html"

clean:  ## delete the demo's outputs; keep the environment
	@rm -rf demo/results demo/state demo/inputs demo/logs demo/benchmarks demo/.snakemake

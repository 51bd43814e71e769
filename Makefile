# Every target does its own set-up; on a fresh Debian machine with Python 3.11 or newer nothing else is needed.
.PHONY: setup tools run test test-ceph lint check bench bench-draw simulate simulate-year package clean lock

BIN := .venv/bin
READY := .venv/.ready
CODE := engine adapters deploy tests
# Two workers: a third one gains a tenth of the time on two cores, and tests of slow lines need one to themselves.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
# The tests start processes by the thousand: what they import is compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

setup: $(READY)

$(READY): requirements-dev.lock pyproject.toml deploy/setup.sh
	bash deploy/setup.sh

tools:
	bash deploy/tools.sh

# The demonstration: a volume backed up twice, both points restored and compared. VOLUME=path: with a volume of yours,
# which is only read.
run: $(READY)
	bash deploy/tools.sh mkfs.ext4 debugfs e2fsck
	$(BIN)/python deploy/demo.py $(if $(VOLUME),--volume "$(VOLUME)")

test: $(READY) tools
	$(PYTEST)

# The S3 store against Ceph's gateway: what servers of two kinds take for granted is left out.
test-ceph: $(READY)
	bash $(or $(SERVICES),../shared/services)/s3_ceph.sh install
	S3_SERVER=ceph $(BIN)/python -m pytest -q tests/contract/test_s3_store.py tests/adapters/stores/test_s3.py \
	    tests/adapters/stores/test_s3_faults.py -k "not certificate and not https and not only_read and not storage_class and not disk_is_full"

check: lint test

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 engine adapters

# Forebay beside restic and borg and the limits of this machine: a table, bench-data/results.json and docs/bench.svg.
# SIZE=2G: the small volume. RUNS=1: no medians. ROWS=first-lz4,random: only some of the work, beside the fastest peers
# only (or PEERS=restic,borg), and no picture. INDEX=1: 160 million index entries as well. QUIET=0: do not wait for a
# quiet machine. BENCH_DIR, SHARED, SERVICES: where the data is, the scripts, and those of the servers.
BENCH = $(BIN)/python -m deploy.bench.main --dir $(or $(BENCH_DIR),bench-data)

bench: $(READY)
	bash deploy/bench/setup.sh '$(ROWS)'
	$(BENCH) --size $(or $(SIZE),8G) --runs $(or $(RUNS),3) --shared $(or $(SHARED),../shared/bench) \
	    --services $(or $(SERVICES),../shared/services) \
	    --quiet $(or $(QUIET),60) $(if $(ROWS),--rows $(ROWS)) $(if $(PEERS),--peers $(PEERS)) $(if $(INDEX),--index)

# Table and picture once more, from the figures of the last full bench.
bench-draw: $(READY)
	$(BENCH) --draw

# Simulations of the whole agent, each from one seed (tests/simulation): SEEDS=100000 of them, FROM=1 on. Those that
# break a promise are told step by step, and how to run them again.
simulate: $(READY)
	$(BIN)/python -m tests.simulation.run --seeds $(or $(SEEDS),1000) --from $(or $(FROM),1)

# Years of twenty systems that share a cache (tests/simulation/year.py), some 15 s of processor time each.
simulate-year: $(READY)
	$(BIN)/python -m tests.simulation.year --seeds $(or $(SEEDS),10) --from $(or $(FROM),1)

# Wheel and source archive in dist/, and the proof that the wheel works on its own.
package: $(READY)
	rm -rf dist build/package
	$(BIN)/python -m hatchling build
	$(BIN)/python -m venv build/package
	build/package/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	build/package/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	cd build && package/bin/forebay --version
	ls -l dist

# New versions of all dependencies, within the bounds of pyproject.toml.
lock: $(READY)
	bash deploy/lock.sh

clean:
	rm -rf .venv build dist bench-data .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

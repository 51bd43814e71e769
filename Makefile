# Every target does its own set-up; on a fresh Debian machine with Python 3.11 or newer nothing else is needed.
.PHONY: setup tools run test lint check bench package clean lock

BIN := .venv/bin
READY := .venv/.ready
CODE := engine adapters deploy tests
# Two workers: the tests are many and small; the real filesystems among them want the disk, not more cores.
PYTEST := $(BIN)/python -m pytest -q -n 2

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

check: lint test

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 engine adapters

# The same data path over a larger volume (MIB=4096), with the time of every step.
bench: $(READY)
	bash deploy/tools.sh mkfs.ext4 debugfs e2fsck
	$(BIN)/python deploy/demo.py --mib $(or $(MIB),2048)

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

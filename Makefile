# Everything below works on a fresh checkout with Python 3.11 and may be run again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install tools demo test test-long drill lint bench fuzz audit protos lock clean

install: $(STAMP)

# torch first and by itself: a range resolved later would pull the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Tests start these as processes of their own. Bring them where we may; without one its tests fail and say so.
TOOLS := redis-server:redis-server chromium:chromium prometheus:prometheus
# A Triton server for the tests of remote arms: nvidia-pytriton brings the binary. It is kept apart from the environment, since
# it asks for an older numpy; where it cannot be had, those tests are skipped.
TRITON := build/triton
$(TRITON): | $(STAMP)
	-$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $@ nvidia-pytriton==0.7.0

tools: $(TRITON)
	@missing=; for tool in $(TOOLS); do command -v $${tool%%:*} > /dev/null || missing="$$missing $${tool##*:}"; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null; } \
	|| echo "missing:$$missing (Debian: apt-get install$$missing)" >&2

demo: $(STAMP)
	$(BIN)/baton demo

# Files of tests side by side, a process each; what stresses the machine is marked long and runs alone.
WORKERS ?= 3
test: $(STAMP) tools
	$(BIN)/python -m pytest -m 'not long' -n $(WORKERS) --dist loadfile --durations 30

# Long tests that hold no time against a limit and start no installation go two at a time, the others alone.
SIDE_BY_SIDE := tests/transfer tests/serving/rollout tests/pipeline/traffic tests/serving/state tests/serving/http
test-long: $(STAMP) tools
	failed=; $(BIN)/python -m pytest -m long --timeout 900 --durations 40 -n 2 --dist loadfile $(SIDE_BY_SIDE) || failed=1; \
	  $(BIN)/python -m pytest -m long --timeout 900 --durations 60 $(SIDE_BY_SIDE:%=--ignore %) || failed=1; test -z "$$failed"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All that is measured in minutes; `baton bench soak` and longer settings are run by hand (docs/performance.md).
BENCHES := serve shadow swap overload context embedding engine traffic analysis train

bench: $(STAMP)
	missed=; for part in $(BENCHES); do $(BIN)/baton bench $$part || missed="$$missed $$part"; done; \
	  test -z "$$missed" || { echo "missed a budget or failed:$$missed"; exit 1; }

# Every alert by its real cause on a running installation; `make test-long` leaves it out.
drill: $(STAMP) tools
	DRILL=1 $(BIN)/python -m pytest -s -m long --timeout 900 tests/e2e/test_alerts_fire.py

# Odd requests to every REST route and every RPC, 100,000 each; `make test` and `make test-long` send fewer.
fuzz: $(STAMP)
	FUZZ_REQUESTS=100000 $(BIN)/python -m pytest -s -m long --timeout 7200 tests/serving/http/test_openapi.py \
	  tests/serving/http/test_rest_fuzz.py tests/serving/services/test_grpc_fuzz.py

# Known faults of the libraries that are installed, by PyPI's advisories; in an environment of its own.
AUDIT := build/audit/bin
audit:
	test -x $(AUDIT)/pip-audit || { $(PYTHON) -m venv build/audit && $(AUDIT)/pip install -q --disable-pip-version-check 'pip-audit>=2.7'; }
	$(AUDIT)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

# Stubs come from 1.76 so that they load beside clients that pin protobuf below 7.
protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/baton/ranking/v1/ranking.proto protos/baton/admin/v1/admin.proto
	$(BIN)/python -m grpc_tools.protoc -I. --include_imports --descriptor_set_out=protos/inference/inference.binpb protos/inference/inference.proto

# Resolve again and write down what was resolved.
lock: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '@ file' > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build *.egg-info

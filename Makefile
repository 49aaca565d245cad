# The workflow of Keswick. `make help` lists what there is; CONTRIBUTING.md tells more.

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

# The first Python that is new enough; PYTHON=/path/to/python3 chooses another.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python $(NEW_ENOUGH) && echo $$python && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # all install into one environment
.PHONY: help run test programs check docs bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 15

run: $(STAMPS)/native ## build, and start a server whose keys survive in the folder run/ (RUN_ARGS go to kes server)
	@[ -e run/config.yaml ] || $(BIN)/kes init run >/dev/null
	@echo 'Call the server from another shell:'
	@echo
	@echo '    export PATH="$(CURDIR)/$(BIN):$$PATH" KES_CA_FILE="$(CURDIR)/run/server.crt"'
	@echo '    export KES_SERVER=https://127.0.0.1:7373   # or another address that stands below as API'
	@echo '    export KES_API_KEY="$$(cat "$(CURDIR)/run/admin.apikey")"'
	@echo '    kes key create my-key'
	@echo
	@$(BIN)/kes server --config run/config.yaml $(RUN_ARGS)

test: $(STAMPS)/native $(STAMPS)/test $(STAMPS)/docs programs ## build, and run the tests (PYTEST_ARGS go to pytest)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What the tests call and no registry of Python packages has. Root on Debian or Ubuntu gets what is missing.
programs:
	@lacks() { for program; do ! command -v $$program >/dev/null || return 1; done; }; missing=; \
	lacks curl && missing="$$missing curl"; lacks openssl && missing="$$missing openssl"; \
	lacks softhsm2-util && missing="$$missing softhsm2"; \
	lacks initdb /usr/lib/postgresql/*/bin/initdb && missing="$$missing postgresql"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "The tests call programs that are not here. On Debian and Ubuntu: apt install$$missing"; exit 1; fi; \
	echo "Installing$$missing."; apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$missing >/dev/null

# Clippy checks the release profile, so that the C code below it is compiled once for check, test and run.
check: $(STAMPS)/check ## lint, types, formats, locks, hygiene
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	$(BIN)/python requirements/lock.py --check
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema -q --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml
	@! git grep -nIE $(FOREIGN) -- . ':!Cargo.lock' || \
		{ echo 'These lines name a path of one machine, or the host of a package registry.'; exit 1; }

FOREIGN := '(^|[^A-Za-z0-9._-])/(work|farm|root)/|pypi[.]org|python[h]osted|(static|index)[.]crates[.]io|proxy[.]golang[.]org|registry[.]npmjs|repo1?[.]maven|deb[.]debian[.]org'

# The tests build the site, too, and look whether the generated parts of the pages are as the code says.
docs: $(STAMPS)/native $(STAMPS)/docs ## write the generated parts of docs/*.md, and build the site: docs/_build/html/index.html
	$(BIN)/python docs/generate.py
	@rm -rf docs/_build
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html

bench: $(STAMPS)/native $(STAMPS)/bench ## measure against nginx (BENCH_ARGS=--quick for a look)
	cargo build --release --locked -p keswick-load
	$(BIN)/python bench/run.py $(BENCH_ARGS)

lock: $(STAMPS)/check ## resolve the dependencies anew, to their newest versions
	$(BIN)/python requirements/lock.py
	cargo update

clean: ## remove what was built; the server's folder run/ stays
	rm -rf $(VENV) target dist build docs/_build src/keswick/_native*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- the environment: one stamp for each set of packages, and one for the native part ---------------------------------

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(STAMPS)/venv:
	@[ -n "$(PYTHON)" ] && $(PYTHON) $(NEW_ENOUGH) || { echo 'Python 3.11 or newer is needed, and' \
		"$(or $(PYTHON),what is on the PATH) is not." 'Install it, or name it: make PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'This Python cannot make virtual environments.' \
		'On Debian and Ubuntu: apt install python3-venv'; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/%: requirements/%.lock $(STAMPS)/venv
	$(PIP_INSTALL) --require-hashes -r $<
	@touch $@

NATIVE_SOURCES := $(shell find native -type f) Cargo.toml Cargo.lock pyproject.toml

# Python's sources are used where they stand, so only a change of the native part or of the metadata is built again.
# pip checks no hashes of what it installs into an isolated build, hence the locked build tools and no isolation.
$(STAMPS)/native: $(NATIVE_SOURCES) $(STAMPS)/build $(STAMPS)/run
	@command -v $${CC:-cc} >/dev/null || { echo 'A C compiler is needed, and there is no' "$${CC:-cc} on the PATH." \
		'On Debian and Ubuntu: apt install gcc; on Fedora: dnf install gcc; on macOS: xcode-select --install'; exit 1; }
	@command -v cargo >/dev/null || echo 'There is no cargo on the PATH: maturin fetches a Rust toolchain into your cache.'
	@echo 'Building the native part; the first time takes some minutes.'
	@PATH="$(CURDIR)/$(BIN):$$PATH" MATURIN_PEP517_ARGS=--locked $(PIP_INSTALL) --no-build-isolation --no-deps --editable . || \
		{ command -v cargo >/dev/null || echo 'This was tried without cargo on the PATH.' \
			'Install Rust 1.85 or newer (https://rustup.rs), then try again.'; exit 1; }
	@touch $@

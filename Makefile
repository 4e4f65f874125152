# Every target installs what it needs itself: Debian packages once, then Python packages into .venv.

PY := .venv/bin/python
ONLY ?=

.PHONY: demo serve compose-check test soak bench lint lock clean packages

demo: .venv packages          ## three nodes on this machine, real manifests, a proof; ONCE=1 checks it and stops
	$(PY) manage.py demo $(if $(ONCE),--once)

serve: .venv packages         ## the control plane alone
	$(PY) manage.py serve

compose-check: .venv packages ## docker-compose.yml with a container engine; without one it says SKIPPED, or fails with REQUIRED=1
	$(PY) manage.py compose_check $(if $(REQUIRED),--required)

test: lint packages           ## every check but the long ones
	$(PY) -m pytest -m "not soak" -q -n 3 --dist loadfile

soak: .venv packages          ## outages, loads, fuzzing in bulk
	$(PY) -m pytest -m soak -q

bench: .venv packages         ## figures into var/bench.json; ONLY=convergence for one area
	$(PY) manage.py bench $(if $(ONLY),--only $(ONLY))

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

lock: .venv                   ## pin every package again, within the ranges of pyproject.toml
	.venv/bin/uv pip compile --quiet --extra dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--output-file requirements.lock pyproject.toml

clean:                        ## everything that was made here
	rm -rf .venv var build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

packages:
	@sh services_app/local/install.sh

.venv: requirements.lock services_app/local/venv.sh
	@sh services_app/local/venv.sh

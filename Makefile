# The two commands of the README are `make train` and `make test`; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

.PHONY: train test check conformance mutants torture torture-full docs bench clean

# The environment is stamped, so that it is made once and again only if what it depends on changes.
$(VENV)/.base: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25.1"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "adding the development tools"
	@$(PIP) install -c constraints.txt --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	@$(PIP) install -c constraints.txt --group docs
	@touch $@

## Train SmolLM2-135M-Instruct on arithmetic and write a report. `make train ARGS="train.num_steps=10"` passes overrides.
train: $(VENV)/.base
	@$(BIN)/covey train arithmetic $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports

## Plant every known bug, one by one, and see that a test fails by an assertion. `ARGS="--class 43"` for one class.
conformance: $(VENV)/.dev
	$(BIN)/python -m tests.conformance.run $(ARGS)

## Mutants made by rule of the code that computes losses: hours for all of them. `ARGS="--sample 200 --results mutants.jsonl"`.
mutants: $(VENV)/.dev
	$(PIP) install -c constraints.txt --group conformance
	$(BIN)/python -m tests.conformance.generated $(ARGS)

## Try to break the sandbox for code and the runs that cannot be lost: under 20 minutes, `torture-full` under 75.
torture: $(VENV)/.dev
	$(BIN)/python benchmarks/torture.py $(ARGS)

torture-full: $(VENV)/.dev
	$(BIN)/python benchmarks/torture.py --full $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

## The shipped recipe with three seeds: about twenty minutes on two quiet cores.
bench: $(VENV)/.base
	$(BIN)/python benchmarks/main_job.py

clean:
	rm -rf $(VENV) site dist

# Every target is one command for one purpose; `make help` lists them. What the environment may name instead of the public defaults:
# TORCH_INDEX_URL, PIP_FIND_LINKS, KIND_IMAGE, BASE_IMAGE, KUBERAY_MANIFEST, INGRESS_MANIFEST, BUILD_IMAGE, LOAD_IMAGE (docs/install.md).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
CLUSTER ?= policymodel
KIND_CONFIG ?= kind-config.yaml
# Never whatever context happens to be current: images and operators of work in progress belong into this cluster only.
CONTEXT ?= kind-$(CLUSTER)
EXAMPLE := k8s/examples/policymodel.yaml
IMAGES := policymodel-operator:dev policymodel-train:dev policymodel-serve:dev
OBSERVATION := {"observation": [0.02, 0.01, -0.03, 0.04]}

VENV := .venv/.installed
# A folder of wheels holds the CPU build already; elsewhere PyPI's torch would bring gigabytes of CUDA.
PIP_INSTALL := .venv/bin/pip install --disable-pip-version-check $(if $(PIP_FIND_LINKS),,$(addprefix --extra-index-url ,$(TORCH_INDEX_URL)))
KUBECTL := kubectl --context $(CONTEXT)
HELM := helm --kube-context $(CONTEXT)
LOAD := $(or $(LOAD_IMAGE),kind load docker-image --name $(CLUSTER))
BUILD_FLAGS := $(if $(PIP_FIND_LINKS),,--build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL))
DOCKER_BUILD := docker build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE))
# $(call build,TAG,FLAGS)
build = $(if $(BUILD_IMAGE),$(BUILD_IMAGE) $(1) . $(2),$(DOCKER_BUILD) -t $(1) $(2) .)

.PHONY: run test lint bench bench-serve bench-train images cluster deploy demo e2e e2e-full clean help

$(VENV): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -q -c constraints.txt -e '.[dev]'
	@touch $@

.venv-s3/.installed: tests/s3-requirements.txt
	$(PYTHON) -m venv .venv-s3
	.venv-s3/bin/pip install --disable-pip-version-check -q -r $<
	@touch $@

run: $(VENV)  ## Train, check and serve the example on this machine (ARGS=--once ends after 20 episodes)
	.venv/bin/policymodel run $(EXAMPLE) $(ARGS)

test: $(VENV) .venv-s3/.installed  ## All tests but the long ones; those on a cluster run when `make cluster` has made one
	@if $(KUBECTL) get --raw /readyz --request-timeout=5s >/dev/null 2>&1; then $(MAKE) --no-print-directory images deploy; \
	else echo "no cluster answers as $(CONTEXT): the tests that need one will say that they are skipped"; fi
	.venv/bin/pytest -m 'not full' $(ARGS)

lint: $(VENV)  ## Style, types, import rules, charts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	@if command -v helm >/dev/null; then for chart in helm/*/; do helm lint --strict --quiet "$$chart"; done; \
	else echo "helm is not installed: the charts are not linted"; fi

bench: $(VENV)  ## Ratios measured side by side
	@for benchmark in $(sort $(wildcard benchmarks/*.py)); do .venv/bin/python "$$benchmark"; done

bench-serve: $(VENV)  ## Requests/s beside Ray's tutorial and others, and in a rollout, in minutes (ARGS='--with bentoml,litserve,mlserver')
	.venv/bin/python -m benchmarks.serve $(ARGS)
	.venv/bin/python -m benchmarks.serve.rollout

bench-train: $(VENV)  ## Training CartPole beside stock RLlib and Stable-Baselines3 (ARGS='--seeds 0-4' runs a part)
	.venv/bin/python -m benchmarks.train $(ARGS)

images:  ## Build the three images and load them into the cluster
	$(call build,policymodel-operator:dev,-f controller/Dockerfile)
	$(call build,policymodel-train:dev,-f app/Dockerfile --target train $(BUILD_FLAGS))
	$(call build,policymodel-serve:dev,-f app/Dockerfile --target serve)
	@# One at a time: each is written to a file on its way into the node.
	@for image in $(IMAGES); do $(LOAD) $$image; done

cluster:  ## A kind cluster with KubeRay and Traefik; what is there already is left alone
	@kind get clusters 2>/dev/null | grep -qx $(CLUSTER) || \
	kind create cluster --name $(CLUSTER) --config $(KIND_CONFIG) $(addprefix --image ,$(KIND_IMAGE)) --wait 180s
	@$(KUBECTL) get crd rayservices.ray.io >/dev/null 2>&1 || { $(INSTALL_KUBERAY); }
	@$(KUBECTL) get ingressclass traefik >/dev/null 2>&1 || { $(INSTALL_INGRESS); }

deploy:  ## Put the operator with the images of `make images` into the cluster
	$(KUBECTL) apply --server-side --force-conflicts -f k8s/crd.yaml
	$(HELM) upgrade --install policymodel-operator helm/policymodel-operator -n policymodel-system --create-namespace \
	  --set crds.install=false --set image.repository=policymodel-operator,image.tag=dev \
	  --set trainingImage=policymodel-train:dev,servingImage=policymodel-serve:dev \
	  --set-string podAnnotations.image="$$(docker image inspect -f '{{.Id}}' policymodel-operator:dev)" --wait --timeout 3m

demo: cluster images deploy  ## All of it, up to a query through the ingress
	$(KUBECTL) apply -f $(EXAMPLE)
	$(KUBECTL) wait --for=condition=Ready policymodel/cartpole --timeout=10m
	$(KUBECTL) get policymodel cartpole
	curl -sS -i --fail-with-body --retry 10 --retry-all-errors --max-time 10 -H 'Host: cartpole.localhost' \
	  http://127.0.0.1:8080/cartpole-ppo -d '$(OBSERVATION)'

e2e: $(VENV) images deploy  ## The tests on the cluster, short tier
	.venv/bin/pytest tests/e2e -m 'e2e and not full' $(ARGS)

e2e-full: $(VENV) images deploy  ## Soaks, kills and repetitions
	.venv/bin/pytest tests -m full $(ARGS)

clean:  ## Remove the environment, caches and local policies; the cluster stays (`kind delete cluster --name policymodel`)
	rm -rf .venv .venv-s3 .policymodel build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find app controller tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The public chart of Traefik needs the ports of the node, which kind-config.yaml publishes; two pods cannot share them in an update.
INSTALL_KUBERAY = $(if $(KUBERAY_MANIFEST),$(KUBECTL) apply --server-side -f $(KUBERAY_MANIFEST) && $(KUBECTL) wait --for=condition=Available deployment/kuberay-operator --timeout=240s,\
  $(HELM) upgrade --install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ --version 1.6.2 \
    -n ray-system --create-namespace --wait --timeout 5m)
INSTALL_INGRESS = $(if $(INGRESS_MANIFEST),$(KUBECTL) apply --server-side -f $(INGRESS_MANIFEST) && $(KUBECTL) -n traefik wait --for=condition=Available deployment/traefik --timeout=240s,\
  $(HELM) upgrade --install traefik traefik --repo https://traefik.github.io/charts --version 38.0.2 \
    -n traefik --create-namespace --set service.type=ClusterIP,ports.web.hostPort=80,ports.websecure.hostPort=443 \
    --set updateStrategy.rollingUpdate.maxUnavailable=1,updateStrategy.rollingUpdate.maxSurge=0 --wait --timeout 5m)

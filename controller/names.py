"""Every name that two places have to spell alike: group, labels, annotations, roles, and the names of children.

May not import anything of ours. The names of children are functions of the owner and of what the child is made from, so that a
controller that was stopped anywhere finds what it made before. `tests/unit/controller/test_names.py` pins the hashes: a change of
`run` retrains every policy there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

GROUP = "policymodel.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "PolicyModel"
PLURAL = "policymodels"

FIELD_MANAGER = "policymodel-operator"
# serveConfigV2 has a field manager of its own: it changes with every rollout, while the rest of a RayService changes only with a
# field of the user's, or belongs to somebody else (an adopted RayService).
SERVE_FIELD_MANAGER = "policymodel-rollout"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = f"{GROUP}/name"
LABEL_ROLE = f"{GROUP}/role"
LABEL_RUN = f"{GROUP}/run"
LABEL_EVALUATION = f"{GROUP}/evaluation"
ANNOTATION_HASH = f"{GROUP}/hash"
ANNOTATION_REPLACES = f"{GROUP}/replaces"
ANNOTATION_PRUNES = f"{GROUP}/prunes"
# One-shot requests: `policymodel.dev/<verb>` holds {id, user, time, ...}, and `status.lastHandledRequests.<verb>` the id that was seen to.
APPROVE, RETRAIN, PROMOTE, ABORT = "approve", "retrain", "promote", "abort"
REQUESTS = (APPROVE, RETRAIN, PROMOTE, ABORT)

ROLE_TRAIN = "train"
# Of the pods of a RayJob's cluster: the head, where the driver learns, and the workers.
ROLE_LEARNER, ROLE_ENV_RUNNER = "learner", "env-runner"
ROLE_EVALUATE = "evaluate"
ROLE_PRUNE = "prune"
ROLE_SERVE = "serve"

# The engines of a training are the kinds of what the operator makes for it.
JOB, RAY_JOB = "Job", "RayJob"

DEPLOYMENT = "ServePPOModel"
SERVE_PORT = 8000
# KubeRay refuses longer names: it adds its own to them (utils.MaxRayJobNameLength).
RAY_JOB_CHARACTERS = 47


def digest_of(made_from: Mapping[str, Any]) -> str:
    """Ten hex digits of the sha256 of a JSON value; 475 and 475.0 are the same number."""
    return hashlib.sha256(json.dumps(_canonical(made_from), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def request_annotation(verb: str) -> str:
    return f"{GROUP}/{verb}"


def training_job(owner: str, run: str) -> str:
    return f"{owner}-train-{run}"


def training_ray_job(owner: str, run: str) -> str:
    """As that of a Job, where it fits."""
    name = training_job(owner, run)
    return name if len(name) <= RAY_JOB_CHARACTERS else training_job(owner[:30], digest_of({"owner": owner, "run": run}))


def evaluation_job(owner: str, evaluation: str) -> str:
    return f"{owner}-evaluate-{evaluation}"


def prune_job(owner: str, digests: Sequence[str]) -> str:
    return f"{owner}-prune-{digest_of({'digests': sorted(digests)})}"


def claim(owner: str) -> str:
    return f"{owner}-policies"


def serve_service(ray_service: str) -> str:
    """The Service that KubeRay makes for the Serve proxies of a RayService."""
    return f"{ray_service}-serve-svc"

"""The API server, as somebody with a kubeconfig reaches it: reads and patches PolicyModels, and reads logs. Decides nothing.

All errors are `ApiTrouble`, with words for whoever typed the command and an exit code for their scripts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from controller import names, words
from controller.spec import Json
from controller.verbs.writes import FIELD_MANAGER

API_TIMEOUT_S = (5, 30)
# To connect, and between two lines of a log that is followed.
FOLLOW_TIMEOUT_S = (5, 86400)
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
EXIT_NOT_DONE, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_FORBIDDEN, EXIT_UNREACHED = 1, 2, 3, 4, 5


class ApiTrouble(Exception):
    """The API server was not reached, or would not."""

    def __init__(self, message: str, exit_code: int = EXIT_NOT_DONE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotStarted(ApiTrouble):
    """The container whose log is asked for has not started yet."""


@dataclass(frozen=True)
class Where:
    """Which cluster and namespace, as kubectl's flags say it; None where they say nothing."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


class Api:
    """One cluster, and one namespace of it.

    Raises:
        ApiTrouble: there is no kubeconfig, or no such context in it.
    """

    def __init__(self, where: Where) -> None:
        settings = client.Configuration()
        user = namespace = None
        try:
            contexts, active = config.list_kube_config_contexts(where.kubeconfig)
            found = next((one for one in contexts if one["name"] == where.context), None) if where.context else active
            if found is None:
                raise ApiTrouble(f"--context: the kubeconfig has no context {where.context}", EXIT_USAGE)
            config.load_kube_config(where.kubeconfig, where.context, settings)
            user, namespace = found["context"].get("user"), found["context"].get("namespace")
        except config.ConfigException as error:
            if where.kubeconfig or where.context or "KUBERNETES_SERVICE_HOST" not in os.environ:
                raise ApiTrouble(f"no cluster: {error}", EXIT_UNREACHED) from error
            config.load_incluster_config(settings)
            namespace = NAMESPACE_FILE.read_text().strip()
        # The first failure is told; whoever typed the command types it again.
        settings.retries = False
        self._host, self._kubeconfig_user = settings.host, user
        self._client = client.ApiClient(settings)
        self._objects, self._core = client.CustomObjectsApi(self._client), client.CoreV1Api(self._client)
        self.namespace = where.namespace or namespace or "default"

    def policy_model(self, name: str) -> Json:
        try:
            found: Json = self._objects.get_namespaced_custom_object(*self._key(name), _request_timeout=API_TIMEOUT_S)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise self._trouble(error, "get", "policymodels.policymodel.dev", f"PolicyModel {name}") from error
        return found

    def patch(self, name: str, patch: Json) -> Json:
        """A JSON merge patch under the field manager of the verbs; gives what is there now."""
        try:
            found: Json = self._objects.patch_namespaced_custom_object(
                *self._key(name),
                body=patch,
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
                _request_timeout=API_TIMEOUT_S,
            )
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise self._trouble(error, "patch", "policymodels.policymodel.dev", f"PolicyModel {name}") from error
        return found

    def user(self) -> str:
        """Who the API server takes the caller for; where it does not tell, who the kubeconfig says."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            found = client.AuthenticationV1Api(self._client).create_self_subject_review(review, _request_timeout=API_TIMEOUT_S)
        except ApiException:
            return self._kubeconfig_user or "unknown"
        except urllib3.exceptions.HTTPError as error:
            raise self._trouble(error, "create", "selfsubjectreviews", "") from error
        return str(found.status.user_info.username)

    def pods(self, selector: str) -> list[Any]:
        """The pods that bear these labels, oldest first."""
        try:
            found = self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=API_TIMEOUT_S)
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise self._trouble(error, "list", "pods", "") from error
        return sorted(found.items, key=lambda pod: str(pod.metadata.creation_timestamp))

    def log(self, pod: str, container: str, *, follow: bool, previous: bool, tail: int | None) -> Iterator[bytes]:
        """The log of a container, in pieces.

        Raises:
            NotStarted: there is none yet.
        """
        try:
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=follow,
                previous=previous,
                tail_lines=tail,
                _preload_content=False,
                _request_timeout=FOLLOW_TIMEOUT_S if follow else API_TIMEOUT_S,
            )
            yield from answer.stream(None)
        except ApiException as error:
            trouble = self._trouble(error, "get", "pods/log", f"log of the pod {pod}")
            raise (NotStarted(str(trouble)) if error.status == 400 else trouble) from error
        except urllib3.exceptions.HTTPError as error:
            raise self._trouble(error, "get", "pods/log", "") from error

    def _key(self, name: str) -> tuple[str, str, str, str, str]:
        return names.GROUP, names.VERSION, self.namespace, names.PLURAL, name

    def _trouble(self, error: Exception, verb: str, resource: str, what: str) -> ApiTrouble:
        # A certificate that is not trusted is an ApiException of status 0.
        if not isinstance(error, ApiException) or not error.status:
            return ApiTrouble(f"no cluster was reached at {self._host}: {error}", EXIT_UNREACHED)
        said = str(words.parsed(str(error.body or "")).get("message") or error.reason)
        if error.status == 404:
            # Without a CustomResourceDefinition the path itself is not there, and no Status says so.
            if not words.parsed(str(error.body or "")):
                said = f"the cluster at {self._host} knows no PolicyModels: the operator is not installed there"
                return ApiTrouble(said, EXIT_NOT_FOUND)
            return ApiTrouble(f"there is no {what} in the namespace {self.namespace}", EXIT_NOT_FOUND)
        if error.status == 403:
            lacks = f"your user lacks the verb {verb} on {resource} in the namespace {self.namespace}"
            return ApiTrouble(f"not allowed: {lacks} ({said})", EXIT_FORBIDDEN)
        if error.status == 401:
            return ApiTrouble(f"the API server at {self._host} does not know you: {said}; log in again", EXIT_FORBIDDEN)
        return ApiTrouble(f"the API server answered {error.status}: {said}")

"""A Kubernetes API server in one process: the verbs and kinds that the operator uses, discovery, watches, and faults to order.

It stores and tells; it decides nothing. Of server-side apply it does the merge (dictionaries deeply, lists whole), not the ownership; a
JSON merge patch takes away what it says is null besides.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]

# plural: group, version, kind
KINDS = {
    "policymodels": ("policymodel.dev", "v1alpha1", "PolicyModel"),
    "jobs": ("batch", "v1", "Job"),
    "ingresses": ("networking.k8s.io", "v1", "Ingress"),
    "rayservices": ("ray.io", "v1", "RayService"),
    "rayclusters": ("ray.io", "v1", "RayCluster"),
    "rayjobs": ("ray.io", "v1", "RayJob"),
    "nodes": ("", "v1", "Node"),
    "pods": ("", "v1", "Pod"),
    "persistentvolumeclaims": ("", "v1", "PersistentVolumeClaim"),
    "events": ("", "v1", "Event"),
    # kopf waits for these two before it watches anything.
    "namespaces": ("", "v1", "Namespace"),
    "customresourcedefinitions": ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
}
CLUSTER_WIDE = {"namespaces", "customresourcedefinitions", "nodes"}
VERBS = ["create", "delete", "get", "list", "patch", "watch"]
_PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?$"
)


@dataclass
class Refused(Exception):
    """An answer that is not 2xx."""

    code: int
    reason: str
    message: str = ""


@dataclass
class Kube:
    """The state of the API, its record of requests, and the faults that are ordered."""

    objects: dict[tuple[str, str, str], Document] = field(default_factory=dict)
    told: list[tuple[int, str, str, Document]] = field(default_factory=list)
    writes: list[tuple[str, str, str]] = field(default_factory=list)
    version: int = 1
    oldest: int = 0
    epoch: int = 0
    failing: int = 0
    failed: int = 0
    refuses_watches: bool = False
    is_namespaced: bool = False
    forbidden: set[str] = field(default_factory=set)
    # Of each merge patch, who said to write; what pods have said; whom the API server takes the caller for, where it tells.
    managers: list[str | None] = field(default_factory=list)
    # The rights that the requests took: verb and resource.
    rights: set[tuple[str, str]] = field(default_factory=set)
    logs: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    # Orders.

    def fail(self, requests: int) -> None:
        """The next requests, discovery aside, are answered by 500."""
        with self.changed:
            self.failing = requests

    def drop_watches(self, *, gap: bool) -> None:
        """Every watch ends; with a gap none begins, and what happens meanwhile is told to nobody, until `resume_watches`."""
        with self.changed:
            self.epoch += 1
            self.refuses_watches = gap
            self.changed.notify_all()

    def resume_watches(self) -> None:
        with self.changed:
            self.refuses_watches, self.oldest = False, self.version

    # What others in the cluster do.

    def put(self, plural: str, document: Document) -> Document:
        """Somebody writes an object."""
        with self.changed:
            metadata = document["metadata"]
            metadata.setdefault("namespace", "default")
            return self._store(plural, metadata["namespace"], metadata["name"], document)

    def change(self, plural: str, name: str, edit: Callable[[Document], Any]) -> None:
        with self.changed:
            document = copy.deepcopy(self.objects[plural, "default", name])
            edit(document)
            self._store(plural, "default", name, document)

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """An object goes, and the garbage collector takes what it owns."""
        with self.changed:
            gone = self.objects.pop((plural, namespace, name))
            self._tell("DELETED", plural, gone)
            for key, child in list(self.objects.items()):
                owners = [owner["uid"] for owner in child["metadata"].get("ownerReferences", [])]
                if gone["metadata"]["uid"] in owners and key in self.objects:
                    self.remove(*key)

    def all(self, plural: str) -> list[Document]:
        with self.changed:
            return [copy.deepcopy(found) for (kind, _, _), found in self.objects.items() if kind == plural]

    def one(self, plural: str, name: str) -> Document | None:
        with self.changed:
            return copy.deepcopy(self.objects.get((plural, "default", name)))

    def created(self, plural: str) -> list[str]:
        return [name for verb, kind, name in self.writes if (verb, kind) == ("create", plural)]

    # The API.

    def answer(self, method: str, path: str, query: dict[str, str], body: Document, *, is_merge: bool = False) -> Document | str:
        found = discovery(path)
        if found is not None:
            return found
        if path == "/apis/authentication.k8s.io/v1/selfsubjectreviews" and self.user:
            return {**body, "status": {"userInfo": {"username": self.user}}}
        match = _PATH.match(path)
        if match is None:
            raise Refused(404, "NotFound", path)
        plural, namespace, name, sub = match["plural"], match["namespace"] or "", match["name"], match["sub"]
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        self.check_rights(path, plural, verb)
        with self.changed:
            self.rights.add((verb, f"{plural}/{sub}" if sub else plural))
            if self.failing > 0:
                self.failing, self.failed = self.failing - 1, self.failed + 1
                raise Refused(500, "InternalError", "etcd has no leader")
            if plural not in KINDS:
                raise Refused(404, "NotFound", plural)
            key = (plural, namespace, name)
            if sub == "log":
                if name not in self.logs:
                    raise Refused(400, "BadRequest", f'container "{query["container"]}" in pod "{name}" is waiting to start')
                lines = self.logs[name].splitlines(keepends=True)
                tail = "".join(lines[-int(query.get("tailLines", len(lines))) :] if lines else [])
                return tail[: int(query.get("limitBytes", len(tail)))]
            if method == "GET":
                return copy.deepcopy(self._found(key)) if name else self._list(plural, namespace, query)
            if method == "POST":
                name = body["metadata"]["name"]
                if (plural, namespace, name) in self.objects:
                    raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
                self.writes.append(("create", plural, name))
                return self._store(plural, namespace, name, body)
            if method == "DELETE":
                self._found(key)
                self.writes.append(("delete", plural, name))
                self.remove(*key)
                return {"kind": "Status", "status": "Success"}
            if is_merge:
                self._found(key)
                self.managers.append(query.get("fieldManager"))
            return self._applied(key, sub, body, is_merge=is_merge)

    def check_rights(self, path: str, plural: str = "", verb: str = "") -> None:
        """With `is_namespaced` the client has rights in namespaces only, and none in the whole cluster.

        To what is `forbidden` it has none, or not the one that is named as in `create events`.
        """
        if {plural, f"{verb} {plural}"} & self.forbidden or (self.is_namespaced and "/namespaces/" not in path):
            raise Refused(403, "Forbidden", f"{path} is forbidden")

    def _applied(self, key: tuple[str, str, str], sub: str | None, body: Document, *, is_merge: bool = False) -> Document:
        plural, namespace, name = key
        live = self.objects.get(key)
        if sub == "status":
            # A status that is applied is all of its manager's; a merge patch takes away what it names as null.
            status = body["status"] if plural == "policymodels" else _merged(self._found(key).get("status", {}), body["status"])
            status = {name: value for name, value in status.items() if value is not None}
            after = {**copy.deepcopy(self._found(key)), "status": status}
        elif live is None:
            after = body
        else:
            after = _without_null(_merged(live, body)) if is_merge else _merged(live, body)
        if after == live:
            return copy.deepcopy(after)
        self.writes.append(("status" if sub else "apply", plural, name))
        return self._store(plural, namespace, name, after)

    def _found(self, key: tuple[str, str, str]) -> Document:
        if key not in self.objects:
            raise Refused(404, "NotFound", f"{key[0]} {key[2]} not found")
        return self.objects[key]

    def _list(self, plural: str, namespace: str, query: dict[str, str]) -> Document:
        group, version, kind = KINDS[plural]
        items = [
            copy.deepcopy(found)
            for (its_plural, its_namespace, _), found in self.objects.items()
            if its_plural == plural and namespace in ("", its_namespace) and _selected(found, query)
        ]
        api_version = f"{group}/{version}" if group else version
        return {"kind": f"{kind}List", "apiVersion": api_version, "metadata": {"resourceVersion": str(self.version)}, "items": items}

    def _store(self, plural: str, namespace: str, name: str, document: Document) -> Document:
        before = self.objects.get((plural, namespace, name))
        after, (group, version, kind) = copy.deepcopy(document), KINDS[plural]
        after |= {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}
        metadata = after["metadata"]
        metadata["namespace"] = namespace
        old = before["metadata"] if before else {}
        metadata["uid"] = old.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = old.get("creationTimestamp") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        is_edit = before is not None and before.get("spec") != after.get("spec")
        metadata["generation"] = old.get("generation", 1) + (1 if is_edit else 0)
        self.objects[plural, namespace, name] = after
        self._tell("MODIFIED" if before else "ADDED", plural, after)
        return copy.deepcopy(after)

    def _tell(self, type_: str, plural: str, document: Document) -> None:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        self.told.append((self.version, type_, plural, copy.deepcopy(document)))
        self.changed.notify_all()


def discovery(path: str) -> Document | None:
    """The answers that say which kinds there are."""
    groups = sorted({(group, version) for group, version, _ in KINDS.values() if group})
    if path in ("/version", "/version/"):
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        named = [
            {"name": group, "versions": [version], "preferredVersion": version}
            for (group, _), version in zip(groups, versions, strict=True)
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    for group, version in [("", "v1"), *groups]:
        if path == (f"/apis/{group}/{version}" if group else "/api/v1"):
            resources = []
            for plural, (its_group, _, kind) in KINDS.items():
                if its_group == group:
                    known = {"singularName": kind.lower(), "namespaced": plural not in CLUSTER_WIDE, "kind": kind}
                    resources += [{**known, "name": plural, "verbs": VERBS}, {**known, "name": f"{plural}/status", "verbs": ["patch"]}]
            return {"kind": "APIResourceList", "groupVersion": f"{group}/{version}".lstrip("/"), "resources": resources}
    return None


def _merged(live: Any, applied: Any) -> Any:
    if isinstance(live, dict) and isinstance(applied, dict):
        return {**live, **{key: _merged(live.get(key), value) for key, value in applied.items()}}
    return copy.deepcopy(applied)


def _without_null(merged: Any) -> Any:
    return {key: _without_null(value) for key, value in merged.items() if value is not None} if isinstance(merged, dict) else merged


def _selected(document: Document, query: dict[str, str]) -> bool:
    labels = document["metadata"].get("labels", {})
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", query.get("labelSelector", "")):
        key, _, listed = part.partition(" in ")
        if listed:
            if labels.get(key.strip()) not in [value.strip() for value in listed.strip("()").split(",")]:
                return False
        else:
            key, _, value = part.partition("=")
            if labels.get(key) != value:
                return False
    wanted = query.get("fieldSelector", "").partition("involvedObject.uid=")[2]
    return not wanted or document.get("involvedObject", {}).get("uid") == wanted


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kube: Kube

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if query.get("watch") in ("true", "1", "True"):
                self._watch(url.path, query)
                return
            is_merge = self.headers.get("Content-Type") == "application/merge-patch+json"
            code, answer = 200, self.kube.answer(self.command, url.path, query, json.loads(sent) if sent else {}, is_merge=is_merge)
        except Refused as refused:
            code, answer = refused.code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refused.code}
            answer |= {"reason": refused.reason, "message": refused.message}
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, path: str, query: dict[str, str]) -> None:
        kube, match = self.kube, _PATH.match(path)
        assert match
        kube.check_rights(path)
        since = int(query.get("resourceVersion", 0))
        with kube.changed:
            if kube.refuses_watches:
                raise Refused(503, "ServiceUnavailable", "no watches now")
            epoch = kube.epoch
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            with kube.changed:
                if since < kube.oldest:
                    lines = [{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}]
                else:
                    news = [entry for entry in kube.told if entry[0] > since and entry[2] == match["plural"]]
                    lines = [{"type": type_, "object": document} for _, type_, _, document in news]
                    since = max([since, *[entry[0] for entry in news]])
                if kube.epoch != epoch:
                    return
                if not lines:
                    kube.changed.wait(0.5)
                    continue
            try:
                self.wfile.write("".join(json.dumps(line) + "\n" for line in lines).encode())
                self.wfile.flush()
            except OSError:
                return
            if lines[0]["type"] == "ERROR":
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server."""


def served(kube: Kube) -> ThreadingHTTPServer:
    """Serves the API on a port of this machine until `shutdown` and `server_close`."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"kube": kube}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server

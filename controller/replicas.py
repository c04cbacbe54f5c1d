"""Asks the replicas what they serve: the truth that `Ready` is based on, in a cluster and in local mode alike."""

from __future__ import annotations

import requests

from controller import observation
from controller.model import Replicas, Unknown


def replicas_at(url: str, has_endpoint: bool, timeout_s: tuple[float, float]) -> Replicas | Unknown | None:
    """What the replicas behind a URL say; None where nothing serves there yet.

    Each time over a connection of its own: one that is kept may lead to a proxy, or to an address, that is no longer the Service's.

    Args:
        has_endpoint: whether somebody ought to answer; then silence means that it could not be found out.
        timeout_s: for connecting, and between two bytes of the answer.
    """
    try:
        with requests.Session() as http:
            http.trust_env = False
            answer = http.get(url, timeout=timeout_s, headers={"Connection": "close"})
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return observation.replicas(answer.json())
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        return Unknown(f"{url}: {type(error).__name__}") if has_endpoint else None

"""Asks the replicas what they serve: the truth that `Ready` is based on, in a cluster and in local mode alike."""

from __future__ import annotations

import json
import time

import requests
import urllib3

from controller import replica_report
from controller.model import Replicas, Unknown

REPORT_BYTES = 1024 * 1024
# Replicas may run an image of their user's: one that sends a byte now and then holds a worker of the operator no longer than this.
REPORT_S = 10.0


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
            headers = {"Connection": "close", "Accept-Encoding": "identity"}
            # Whoever answers there does not say where else the operator is to ask.
            with http.get(url, timeout=timeout_s, headers=headers, stream=True, allow_redirects=False) as answer:
                if answer.status_code == 404:
                    return None
                answer.raise_for_status()
                return replica_report.replicas(json.loads(_body(answer)))
    except replica_report.ReportUnusable as error:
        return Unknown(f"{url}: {error}") if has_endpoint else None
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        return Unknown(f"{url}: {type(error).__name__}") if has_endpoint else None


def _body(answer: requests.Response) -> bytes:
    """The body, as far as it comes in time.

    Raises:
        ReportUnusable: it is too long, or takes too long.
    """
    deadline, body = time.monotonic() + REPORT_S, b""
    while chunk := answer.raw.read1(REPORT_BYTES):
        body += chunk
        if len(body) > REPORT_BYTES or time.monotonic() > deadline:
            raise replica_report.ReportUnusable("the report is too long, or too slow")
    return body

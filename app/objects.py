"""Objects of an S3 bucket: read, written, listed, removed. The only module that knows the S3 client; it knows nothing of policies.

The client (obstore, the object_store crate of Apache Arrow) tries again with growing pauses where a store is slow, answers 5xx or is gone
for a while, signs the sha256 of each upload (the store refuses what was damaged on the way), and sends large objects in parts.

The environment says where and as whom, in the words of AWS's own tools:

AWS_ENDPOINT_URL_S3           another store than AWS's
AWS_REGION                    us-east-1 unless given
AWS_SHARED_CREDENTIALS_FILE   read again and again, so that keys may be exchanged while it runs; without it whatever else AWS's tools
                              would find: variables, a web identity, the instance's role
POLICYMODEL_S3_PATH_STYLE     `true`: the bucket is in the path (usual where there is an endpoint), `false`: in the host's name
"""

import configparser
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

# A store that is gone for longer fails the attempt, and the next one goes on.
GONE_S = 180
# That time ends it, and no count: the client's pauses are of chance, and a hundred of them may be over in 45 s.
MOST_RETRIES = 10_000
TIMEOUT_S = 60
REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectPlace:
    """An object, or what lies below one name, in a bucket.

    Attributes:
        bucket: its name.
        key: path in the bucket, without slashes at its ends.
    """

    bucket: str
    key: str

    def __truediv__(self, name: str) -> "ObjectPlace":
        return ObjectPlace(self.bucket, f"{self.key}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    def read(self) -> bytes | None:
        """The object's content, None where there is no such object."""
        with self._faults():
            try:
                return bytes(_store(self.bucket).get(self.key).bytes())
            except FileNotFoundError:
                return None

    def write(self, content: bytes) -> None:
        """Writes the object: readers see all of it or none."""
        with self._faults():
            _store(self.bucket).put(self.key, content)

    def below(self) -> list[str]:
        """The keys of all objects below here, relative to here, sorted."""
        with self._faults():
            pages = _store(self.bucket).list(prefix=f"{self.key}/")
            return sorted(one["path"].removeprefix(f"{self.key}/") for page in pages for one in page)

    def remove(self, keys: list[str]) -> None:
        """Removes objects below here, in this order."""
        with self._faults():
            for key in keys:
                with suppress(FileNotFoundError):
                    _store(self.bucket).delete(f"{self.key}/{key}")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Says what the client raises as an OSError. Its text may quote the store's answer: it goes to the log alone."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            print(f"{self}: {error}", file=sys.stderr)
            raise OSError(errno.EIO, f"{type(error).__name__}; the log of the pod has more", str(self)) from error


@cache
def _store(bucket: str) -> Any:
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or None
    is_path_style = os.environ.get("POLICYMODEL_S3_PATH_STYLE", str(endpoint is not None)).lower() == "true"
    if endpoint and not is_path_style:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{bucket}.{host}"
    return S3Store(
        bucket,
        region=os.environ.get("AWS_REGION") or REGION,
        virtual_hosted_style_request=not is_path_style,
        client_options={"allow_http": True, "timeout": timedelta(seconds=TIMEOUT_S)},
        retry_config={"max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=GONE_S)},
        **({"endpoint": endpoint} if endpoint else {}),
        **({"credential_provider": _credentials} if "AWS_SHARED_CREDENTIALS_FILE" in os.environ else {}),
    )


def _credentials() -> dict[str, Any]:
    """The keys that the credentials file holds now."""
    path, profile = os.environ["AWS_SHARED_CREDENTIALS_FILE"], os.environ.get("AWS_PROFILE", "default")
    # Keys may hold a %.
    parser = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as file:
        parser.read_file(file)
    section = parser[profile]
    return {
        "access_key_id": section["aws_access_key_id"],
        "secret_access_key": section["aws_secret_access_key"],
        "token": section.get("aws_session_token"),
        "expires_at": datetime.now(UTC),  # so the next request reads the file again
    }

"""What an env runner in a process of its own raised, for its driver.

RLlib ends a runner that raises, and what it raised goes with it; so the runner leaves word in the key-value store of their Ray.
"""

import json
import sys
import traceback

from app.errors import InputError, RetryableError, RunError

KEY = "policymodel-env-runner"


def leave_word(error: Exception) -> None:
    """Leaves word of what an env runner raised; what no attempt can mend is not forgotten for what another one may."""
    from ray.experimental.internal_kv import _internal_kv_put

    is_final = isinstance(error, InputError)
    if isinstance(error, InputError):
        reason, message = error.reason, error.message
    else:
        # What a step raises RLlib wraps. Its text may hold a secret of the environment's: it is in the log.
        reason, message = "Internal", f"{type(error.__cause__ or error).__name__} in an env runner; the log of the Job has more"
    word = {"reason": reason, "message": message, "isFinal": is_final, "log": "".join(traceback.format_exception(error))}
    _internal_kv_put(KEY, json.dumps(word), overwrite=is_final)


def taken_word() -> RunError | None:
    """What an env runner raised since this was last asked, if any did; the log is told all of it."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    content = _internal_kv_get(KEY)
    if content is None:
        return None
    _internal_kv_del(KEY)
    word = json.loads(content)
    print(word["log"], file=sys.stderr)
    return (InputError if word["isFinal"] else RetryableError)(word["reason"], word["message"])

"""What can go wrong in a run, as one word for machines and one sentence for people. It says nothing and ends nothing."""


class RunError(Exception):
    """A run that ends without what it was asked for.

    Args:
        reason: CamelCase word that a program may branch on.
        message: one sentence for the user: which field of the spec, what is allowed or what to do.
    """

    exit_code = 1

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class InputError(RunError):
    """The input is wrong: the same input fails again, so a retry cannot help (exit code 2, which the Job's podFailurePolicy knows)."""

    exit_code = 2


class RetryableError(RunError):
    """The surroundings failed: the same input may succeed later (exit code 1)."""

    exit_code = 1

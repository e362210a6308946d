"""Exceptions that a caller may catch. Each message is one line."""

from __future__ import annotations

import signal


class RobobenchError(Exception):
    """Base class of all errors below."""


class RequestError(RobobenchError, ValueError):
    """The request is wrong. The message names the value, what is allowed and the next move."""


class GradientError(RequestError):
    """A model's input gradient is NaN or missing where an attack needs it, so its result would be meaningless."""


class ThreatModelError(RobobenchError):
    """An attack returned images outside its threat model. They are never counted as robustness."""


class NonFiniteLossError(RobobenchError):
    """A training loss became NaN or infinite; training stopped at that step."""


class ArtifactError(RobobenchError):
    """A stored file does not match its digest, or cannot be read or written."""


class StorageError(RobobenchError):
    """The store cannot be written (full disk, read-only folder). Finished work is unchanged."""


class ExecutorError(RobobenchError):
    """A cluster cannot run the tasks. Finished work is unchanged."""


class OutOfMemoryError(RobobenchError):
    """Training ran out of memory, and its batches cannot be split further."""


class PluginError(RequestError):
    """A defense or attack could not be imported."""


class ProcessError(RobobenchError):
    """One of several processes died; the others were stopped."""


class Interrupted(BaseException):
    """A signal asked the process to stop. Finished work is in the store.

    Derives from BaseException: an Exception would become a failed cell, and typer would handle a KeyboardInterrupt.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def one_line(err: Exception) -> str:
    """Return an exception's type and message on one line."""
    return f"{type(err).__name__}: {' '.join(str(err).split())}".rstrip(": ")

"""The few exceptions a caller may want to catch."""


class RobobenchError(Exception):
    """Anything robobench refuses or gives up on, said in one line."""


class RequestError(RobobenchError, ValueError):
    """The request is wrong: the message names the value, what is allowed and the next move."""


class GradientError(RequestError):
    """A network's gradient is NaN where an attack needs it; what the attack leaves would mean nothing."""


class ThreatModelError(RobobenchError):
    """An attack returned images outside its threat model; never scored as robustness."""


class NonFiniteLossError(RobobenchError):
    """A training loss became NaN or infinite; training stopped at that step."""


class ArtifactError(RobobenchError):
    """A stored file does not match its digest, or cannot be read or written."""


class StorageError(RobobenchError):
    """The store cannot be written (a full disk, a read-only folder); what is finished stays as it is."""


class ExecutorError(RobobenchError):
    """The work cannot be carried out where it was sent; what is finished stays as it is."""


class OutOfMemoryError(RobobenchError):
    """Training ran out of memory and its batches cannot be cut further."""


class PluginError(RequestError):
    """A defense or attack could not be imported."""


class ProcessError(RobobenchError):
    """One of the processes that worked in step is gone; the others were ended."""


def one_line(err: Exception) -> str:
    """Spell an exception as type and message on one line."""
    return f"{type(err).__name__}: {' '.join(str(err).split())}".rstrip(": ")

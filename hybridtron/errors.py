"""The exceptions that mean: the input was wrong, or training stopped; names and causes in messages."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_rename: ContextVar[Callable[[str], str]] = ContextVar("rename", default=str)


LONGEST_WORD = 300  # characters that are printed whole


class UserError(Exception):
    """Bad input. Its text is one clear line: what was wrong, where, and what was expected.

    The command line prints the text and exits with code 2; library callers may catch it. A word that is longer than a
    message should be, such as a path of thousands of characters, is cut.
    """

    def __init__(self, text: str) -> None:
        super().__init__(re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:60]}...{word[0][-40:]}", text))


class DamagedCheckpoint(UserError):
    """The content of a checkpoint is wrong, missing or cut; an older one may be whole."""


class TrainingStopped(Exception):
    """Too many steps in a row had a non-finite loss or gradient, or the last checkpoint could not be written."""


# Of a file that is gone, and of a place that damaged content names and that no file has.
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)


def unreadable(path: os.PathLike[str] | str, error: BaseException, reason: str | None = None) -> Exception:
    """Return what to raise where a part of a checkpoint could not be read.

    It is an OSError where the system failed or had no memory, since the content may be whole then, and otherwise
    DamagedCheckpoint, for `reason`.
    """
    link: BaseException | None = error
    while link is not None:
        if _is_out_of_memory(link):
            return OSError(errno.ENOMEM, cause_of(link), os.fspath(path))
        if isinstance(link, OSError) and link.errno is not None and link.errno not in DAMAGE:
            return OSError(link.errno, link.strerror, link.filename or os.fspath(path))
        link = link.__cause__ or link.__context__
    return DamagedCheckpoint(f"{path}: damaged: {reason or cause_of(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is Python's, or one of torch's, for too little memory; torch is not imported."""
    torch_s = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or torch_s


@contextmanager
def parameters_renamed(rename: Callable[[str], str]) -> Iterator[None]:
    """Rewrite the names of Python parameters in the messages of the block, as the command line does."""
    before = _rename.set(rename)
    try:
        yield
    except UserError as error:
        raise UserError(rename(str(error))) from error
    finally:
        _rename.reset(before)


def with_caller_names(text: str) -> str:
    """Return a message with its parameters named as the caller knows them: `resume=True`, or `--resume`."""
    return _rename.get()(text)


def cause_of(error: BaseException) -> str:
    """Return why something failed in one line: what the system says, and of which file, where that is known."""
    failures = getattr(error, "failures", None)  # of torch's CheckpointException: the exception of each process
    if failures:
        error = next(iter(failures.values()))[0]
    link: BaseException | None = error
    while link is not None and not isinstance(error, UserError):
        if isinstance(link, OSError) and link.strerror:
            return f"{os.fsdecode(link.filename)}: {link.strerror}" if link.filename else link.strerror
        link = link.__cause__ or link.__context__
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^.*\[Errno \d+\] ", "", line)

"""How commands and scripts end: an error is one line, and the exit code says whose fault it was."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable

from hybridtron.cli.output import is_reporting_process
from hybridtron.errors import UserError, cause_of

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a command, or the `main` of a script, and return its exit code.

    That is what it returns, 0 for None; or 1 where the system failed, 2 for bad input, 130 for an interrupt.
    """
    try:
        code = run() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        if is_reporting_process():
            print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough; nothing may be flushed there at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        logger.debug("failed", exc_info=True)
        if is_reporting_process():
            print(f"hybridtron: error: {UserError(cause_of(error))}", file=sys.stderr)
        return 1 if error.errno in (*FULL, *FAILING) else 2  # the system's fault, or the input's

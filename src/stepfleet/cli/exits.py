"""How the programs end: the exit codes, and errors as one line for the person at the terminal.

Layer: cli.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Final, NoReturn

import click

from stepfleet.errors import (
    ConnectionLost,
    DecodeError,
    DefinitionError,
    IncompatibleServer,
    RunError,
    StoreError,
    StoreRefused,
)
from stepfleet.instrumentation import masked

#: Drained, or nothing was left to do.
OK: Final = 0
#: A defect, with its traceback above; or what was asked cannot be done, such as for a run that is not there.
CRASHED: Final = 1
#: The command line itself is wrong.
USAGE: Final = 2
#: A setting, a target, a workflow or the server's configuration is wrong.
CONFIG: Final = 3
#: Redis cannot be reached (EX_UNAVAILABLE).
UNAVAILABLE: Final = 69
#: What to do about that.
REACH: Final = (
    "start that server, or name another one by --redis-url or STEPFLEET_REDIS_URL; `stepfleet dev` runs one "
    "for a folder"
)
#: A full disk, a full quota.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
#: The drain limit passed, and other workers got what still ran (EX_TEMPFAIL).
HANDED_BACK: Final = 75


def forced_by(signal_number: int) -> int:
    """Return the exit code of a program that a second signal has cut short."""
    return 128 + signal_number


def run_program(name: str, command: click.Command) -> NoReturn:
    """Run a command line and exit with its code; what its user can mend is said without traceback."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        # A terminal or log without the letters of a message gets it with escapes, and not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_code_of(name, command))


def _open_what_is_closed() -> None:
    """Let standard streams that a shell has closed (`>&-`) lead nowhere: else the next socket is one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end


def leave_within(seconds: float, code: int) -> None:
    """End the process with `code` even when a thread that cannot be stopped keeps it from ending."""

    def leave() -> None:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def complain(name: str, message: object) -> None:
    """Write one error to stderr, with the passwords of URLs masked."""
    click.echo(f"{name}: {masked(str(message))}", err=True)


def _code_of(name: str, command: click.Command) -> int:
    try:
        return int(command.main(prog_name=name, standalone_mode=False) or OK)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return forced_by(2)
    except (DefinitionError, IncompatibleServer, StoreRefused) as error:
        complain(name, error)
        return CONFIG
    except (RunError, DecodeError) as error:
        complain(name, error)
        return CRASHED
    except ConnectionLost as error:
        complain(name, f"{error}: {REACH}")
        return UNAVAILABLE
    except StoreError as error:
        complain(name, error)
        return UNAVAILABLE
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # What is still in Python's buffer goes nowhere, or the interpreter complains of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        complain(name, f"the output cannot be written: {error.strerror}")
        return CRASHED

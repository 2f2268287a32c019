"""Replace this process with a command that the kernel ends when its parent does (Linux).

`python -I -S launch.py PARENT_PID COMMAND...`, run by path and with the standard library only, because it is
started once for every child of the local stack. PR_SET_PDEATHSIG survives exec; the parent is the *thread*
that forked, so it must be one that lives as long as the parent does (the event loop's, which is the main one).
On other systems the command runs without this tie. Source: prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_RUN = 127  # a shell's status for a command that is not there


def main(arguments: list[str]) -> None:
    """Tie this process to the parent named by `arguments[0]`, then run `arguments[1:]` in its place."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # it died before the line above
            sys.exit(0)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Set attributes of this process with Linux's ``prctl``."""

from __future__ import annotations

import ctypes
import os

SET_PDEATHSIG = 1
"""Signal that this process gets when its parent ends."""

SET_DUMPABLE = 4
"""0: processes of the same account cannot read this one's memory, environment and descriptors."""

SET_CHILD_SUBREAPER = 36
"""1: descendants whose parent ends become children of this process."""

SET_NO_NEW_PRIVS = 38
"""1: programs that this process and its descendants start gain no rights from a setuid bit."""


def prctl(option: int, value: int) -> None:
    """Set an attribute; raise `OSError` if the system refuses it or has no ``prctl``."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        result = libc.prctl(option, value, 0, 0, 0)
    except AttributeError:
        raise OSError("this system has no prctl") from None
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")

"""Locks on open files that the system takes back when their process ends, in whatever way."""

import errno
import os

# each in a try: transformers asks for every other module that code pushed along with a model imports
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_FAR = 2**30  # Windows locks bytes, and keeps others from reading them: this one lies behind all that is written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def try_lock(handle: int, shared: bool = False) -> bool:
    """Lock an open file without waiting; closing the file gives the lock back.

    Args:
        handle: of the open file. On NFS it must be open to be written.
        shared: let others lock it in the same way.

    Returns:
        Whether the lock is ours now; False where somebody else has it.

    Raises:
        OSError: with an errno among `NO_LOCKS` where the file system has no locks.
    """
    try:
        if fcntl is None:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True

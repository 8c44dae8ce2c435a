"""The three families of errors, never mixed.

::

    Exception
    ├── KernelError            what a system call returns: one subclass per errno
    │   ├── PermissionDenied   EPERM     ├── Busy            EBUSY
    │   ├── NoEntry            ENOENT    ├── Exists          EEXIST
    │   ├── …
    ├── KernelPanic            the modelled kernel died; its host is down, the run goes on
    └── ModelBug               the model is wrong; caught only at a run's outermost frame

`errno` is a class attribute and none of them derives from `OSError`: an exception that crosses
a Ray boundary is rebuilt from its arguments, and `OSError` then loses its errno.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar

__all__ = [
    "ERRNO_CLASSES",
    "AccessDenied",
    "AddressInUse",
    "AddressNotAvailable",
    "Again",
    "BadAddress",
    "BadFileDescriptor",
    "Busy",
    "Exists",
    "FileTooBig",
    "IllegalSeek",
    "InvalidArgument",
    "IoError",
    "KernelError",
    "KernelPanic",
    "ModelBug",
    "NoData",
    "NoDevice",
    "NoEntry",
    "NoExec",
    "NoMemory",
    "NoSpace",
    "NotPermitted",
    "NotSupported",
    "NotTty",
    "OutOfRange",
    "Overflow",
    "TooBig",
    "TooManyFiles",
    "kernel_error",
]


def _symbol(errno: int) -> str:
    # Linux has one number for two symbols, and Python knows it by the one the kernel never uses.
    return "EOPNOTSUPP" if errno == _errno.EOPNOTSUPP else _errno.errorcode[errno]


class KernelError(Exception):
    """A system call's refusal. `errno` is positive, as `errno(3)` has it."""

    errno: ClassVar[int] = 0

    def __init__(self, message: str = "", **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.context)

    @property
    def name(self) -> str:
        """The errno's symbol, e.g. ``"ENOENT"``."""
        return _symbol(self.errno)

    def __str__(self) -> str:
        where = ", ".join(f"{key}={value!r}" for key, value in self.context.items())
        return f"{self.name}: {self.message}" + (f" ({where})" if where else "")


def _rebuild(cls: type[KernelError], message: str, context: dict[str, object]) -> KernelError:
    return cls(message, **context)


class NotPermitted(KernelError):
    """EPERM."""

    errno = _errno.EPERM


class NoEntry(KernelError):
    """ENOENT."""

    errno = _errno.ENOENT


class IoError(KernelError):
    """EIO."""

    errno = _errno.EIO


class TooBig(KernelError):
    """E2BIG."""

    errno = _errno.E2BIG


class NoExec(KernelError):
    """ENOEXEC."""

    errno = _errno.ENOEXEC


class BadFileDescriptor(KernelError):
    """EBADF."""

    errno = _errno.EBADF


class Again(KernelError):
    """EAGAIN."""

    errno = _errno.EAGAIN


class Overflow(KernelError):
    """EOVERFLOW."""

    errno = _errno.EOVERFLOW


class NoMemory(KernelError):
    """ENOMEM."""

    errno = _errno.ENOMEM


class AccessDenied(KernelError):
    """EACCES."""

    errno = _errno.EACCES


class BadAddress(KernelError):
    """EFAULT."""

    errno = _errno.EFAULT


class Busy(KernelError):
    """EBUSY."""

    errno = _errno.EBUSY


class Exists(KernelError):
    """EEXIST."""

    errno = _errno.EEXIST


class TooManyFiles(KernelError):
    """EMFILE."""

    errno = _errno.EMFILE


class NoDevice(KernelError):
    """ENODEV."""

    errno = _errno.ENODEV


class InvalidArgument(KernelError):
    """EINVAL."""

    errno = _errno.EINVAL


class NotTty(KernelError):
    """ENOTTY."""

    errno = _errno.ENOTTY


class FileTooBig(KernelError):
    """EFBIG."""

    errno = _errno.EFBIG


class NoSpace(KernelError):
    """ENOSPC."""

    errno = _errno.ENOSPC


class IllegalSeek(KernelError):
    """ESPIPE."""

    errno = _errno.ESPIPE


class NoData(KernelError):
    """ENODATA."""

    errno = _errno.ENODATA


class OutOfRange(KernelError):
    """ERANGE."""

    errno = _errno.ERANGE


class NotSupported(KernelError):
    """EOPNOTSUPP."""

    errno = _errno.EOPNOTSUPP


class AddressInUse(KernelError):
    """EADDRINUSE."""

    errno = _errno.EADDRINUSE


class AddressNotAvailable(KernelError):
    """EADDRNOTAVAIL."""

    errno = _errno.EADDRNOTAVAIL


#: Every errno that the model knows, by its symbol.
ERRNO_CLASSES: dict[str, type[KernelError]] = {
    _symbol(cls.errno): cls for cls in KernelError.__subclasses__()
}


def kernel_error(symbol: str, message: str, **context: object) -> KernelError:
    """The `KernelError` for an errno's symbol such as ``"EIO"``.

    Raises:
        ModelBug: the model has no class for it.
    """
    if symbol not in ERRNO_CLASSES:
        raise ModelBug(f"no KernelError class for {symbol}")
    return ERRNO_CLASSES[symbol](message, **context)


class KernelPanic(Exception):
    """The modelled kernel stopped for good. C: panic()."""


class ModelBug(AssertionError):
    """An invariant of the model is broken: the simulator itself is wrong."""

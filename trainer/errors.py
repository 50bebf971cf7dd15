"""What a user can put right, by kind.

UserError                 prints without a traceback; the command exits with status 2
├── ConfigError           a setting, preset or command-line value
├── DataError             pictures, captions, folders, zips
├── AdapterError          a LoRA file that can't be read or doesn't fit
├── ModelError            a base model that can't be found or isn't what it was called
└── RunError              a run folder or checkpoint that can't be used

Everything else that is raised is a bug and keeps its traceback. A message says what is wrong, where, what was found
and what is allowed, all problems at once.
"""

import errno

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UserError(Exception):
    """Something a user can put right."""

    def __str__(self) -> str:
        """The message, with its unprintable signs as their codes: it may quote a piece of a file or a prompt."""
        return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in super().__str__())


class ConfigError(UserError):
    """A setting, preset or command-line value."""


class DataError(UserError):
    """Pictures, captions, folders, zips."""


class AdapterError(UserError):
    """A LoRA file that can't be read or doesn't fit."""


class ModelError(UserError):
    """A base model that can't be found or isn't what it was called."""


class RunError(UserError):
    """A run folder or checkpoint that can't be used."""


def is_of_a_file(error: OSError) -> bool:
    """Whether the error is of a file or the disk, such as a full disk, and not a fault in the program."""
    return error.filename is not None or error.errno in _OF_THE_DISK

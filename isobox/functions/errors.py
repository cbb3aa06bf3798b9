"""What can go wrong with a function, beside its own exceptions.

IsoboxError
└── FunctionError
    ├── RemoteError         it raised something that cannot be raised here as it was; carries its type and traceback
    ├── FunctionTimeout     it ran for too long
    ├── ContainerFailed     no container could be started for it, or too many ended under it
    ├── CallCancelled       the call was cancelled
    └── NotSerializable     an argument or the function cannot be sent
"""

from isobox.errors import IsoboxError
from isobox.printable import printable_lines


class FunctionError(IsoboxError):
    """Anything about functions."""


class RemoteError(FunctionError):
    """An exception of the function's; `type_name` is its type, `remote_traceback` where it was raised inside."""

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        self.type_name = type_name
        self.remote_traceback = remote_traceback
        super().__init__(f"{type_name}: {message}" if message else type_name)


class FunctionTimeout(FunctionError):
    """It ran for longer than its timeout."""


class ContainerFailed(FunctionError):
    """No container for it."""


class CallCancelled(FunctionError):
    """The call was cancelled."""


class NotSerializable(FunctionError):
    """Something cannot be sent."""


class Traceback(Exception):
    """Where it was raised inside: the cause of the exception that is raised here."""

    def __str__(self) -> str:
        return printable_lines(f"in the container:\n{self.args[0]}")

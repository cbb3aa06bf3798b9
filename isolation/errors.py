"""What can go wrong with a sandbox, as seen by whoever drives it.

IsoboxError
└── IsolationError
    ├── RunscError            runsc or its control server refused, or is not usable here
    ├── SandboxGone           the sandbox has ended
    │   └── ChannelLost       nobody kept the way into it
    ├── CheckpointRefused     what runs inside can't be copied now; it goes on
    ├── DiskFull              there is no room for a copy; the sandbox goes on
    ├── SnapshotUnusable      a snapshot that does not fit this machine, or is not what was written
    ├── GuestUnresponsive     PID 1 did not answer within its bound; terminate still works
    ├── HelperBroken          a program of ours inside said what ours does not say; the sandbox goes on
    ├── ChannelViolation      PID 1 sent what no init of ours sends; the sandbox is not trusted any further
    └── LimitReached          more at once than one sandbox may have
"""

from common.errors import IsoboxError


class IsolationError(IsoboxError):
    """Anything this package raises on purpose."""


class RunscError(IsolationError):
    """runsc or the sandbox's control server refused."""


class SandboxGone(IsolationError):
    """The sandbox has ended."""


class ChannelLost(SandboxGone):
    """Nobody kept the way into the sandbox."""


class CheckpointRefused(IsolationError):
    """What runs inside cannot be copied now; it goes on."""


class DiskFull(IsolationError):
    """There is no room for a copy."""


class SnapshotUnusable(IsolationError):
    """A snapshot that does not fit this machine, or is not what was written."""


class GuestUnresponsive(IsolationError):
    """PID 1 did not answer within its bound."""


class HelperBroken(IsolationError):
    """A program inside, which stands where ours was put, said what ours does not say."""


class ChannelViolation(IsolationError):
    """PID 1 broke the protocol."""


class LimitReached(IsolationError):
    """More at once than one sandbox may have."""

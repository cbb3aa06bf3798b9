"""What can go wrong with GPUs.

IsoboxError
└── GpuError
    ├── GpuImpossible   nobody here could ever have that
    ├── GpuBusy         not now; later perhaps
    └── GpuUnusable     there is one, and it cannot be given to a sandbox
"""

from common.errors import IsoboxError


class GpuError(IsoboxError):
    """Anything this package raises on purpose."""


class GpuImpossible(GpuError):
    """What is asked for this machine does not have."""


class GpuBusy(GpuError):
    """What is asked for others have now."""


class GpuUnusable(GpuError):
    """Driver, libraries or device nodes do not allow it."""

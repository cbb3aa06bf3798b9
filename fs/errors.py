"""What can go wrong with images and the store.

IsoboxError
├── BucketFailed            a bucket refused, or did not answer; errno says it to who reads and writes there
└── ImageError
    ├── UnknownImage        no image of that name
    ├── Interrupted         nobody wants it any more (`fs.progress`)
    ├── ImageInvalid        what was given cannot become an image
    └── StoreError
        ├── StoreFull       the quota or the disk is full
        ├── StoreCorrupt    what was read is not what was written
        └── StoreUnreachable    the store does not answer
"""

from common.errors import IsoboxError


class BucketFailed(IsoboxError):
    """A bucket refused, or did not answer; errno is what read(2) and write(2) tell of it."""

    def __init__(self, detail: str, *, errno: int, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.errno = errno


class ImageError(IsoboxError):
    """Anything this package raises on purpose."""


class UnknownImage(ImageError):
    """No image of that name."""


class ImageInvalid(ImageError):
    """What was given cannot become an image."""


class StoreError(ImageError):
    """The store of contents failed."""


class StoreFull(StoreError):
    """The quota or the disk is full."""


class StoreCorrupt(StoreError):
    """What was read is not what was written."""


class StoreUnreachable(StoreError):
    """The store does not answer, or not in time."""

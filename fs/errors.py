"""What can go wrong with an image.

IsoboxError
└── ImageError
    ├── UnknownImage    no image of that name
    └── ImageInvalid    what was given cannot become an image
"""

from common.errors import IsoboxError


class ImageError(IsoboxError):
    """Anything this package raises on purpose."""


class UnknownImage(ImageError):
    """No image of that name."""


class ImageInvalid(ImageError):
    """What was given cannot become an image."""

"""Images over the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from sandbox_api.host.interface import Difference
from sandbox_api.models.common import Environment, ForeignObject, ForeignText, Page, Strict, Text
from sandbox_api.models.network import AskedPolicy

STEPS_MAX = 100

ImageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
AuthHost = Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?$")]
Place = Annotated[Text, Field(pattern=r"^/", max_length=4095)]


class RegistrySource(Strict):
    """An image in a registry, HOST/REPOSITORY:TAG; `secret` names a secret that holds USER:PASSWORD.

    The password is sent to the registry, to hosts of its own domain, and to `auth_host` (HOST or HOST:PORT).
    """

    reference: Annotated[Text, Field(min_length=1, max_length=512)]
    secret: SecretName | None = None
    auth_host: AuthHost | None = None


class Run(Strict):
    """A command, by the image's shell, as root."""

    run: Annotated[Text, Field(min_length=1, max_length=64 << 10)]


class Env(Strict):
    """Variables of what runs later."""

    env: Environment


class Workdir(Strict):
    """The working directory of what runs later; made where missing."""

    workdir: Place


class Copied(Strict):
    """An archive that was uploaded (`PUT /v1/uploads/DIGEST`), and the folder that it is unpacked into."""

    upload: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    to: Place


class Copy(Strict):
    """Files from outside."""

    copy_: Annotated[Copied, Field(alias="copy")]


class BuildSource(Strict):
    """An image and steps over it. Each step's result is kept: the same step over the same image runs once."""

    base: Annotated[Text, Field(min_length=1, max_length=63)] = "python"
    steps: Annotated[list[Run | Env | Workdir | Copy], Field(max_length=STEPS_MAX)] = []
    network: AskedPolicy | None = None


class CreateImage(Strict):
    """A name, and one of: a registry's image, steps over another image, a snapshot of files."""

    name: ImageName
    registry: RegistrySource | None = None
    build: BuildSource | None = None
    snapshot: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "CreateImage":
        if sum(source is not None for source in (self.registry, self.build, self.snapshot)) != 1:
            raise ValueError("give one of registry, build and snapshot")
        return self


class ImageFailure(BaseModel):
    """Why an image was not made; `step` counts from 1, `error` is the structured error of the command that failed."""

    code: str
    detail: ForeignText
    hint: ForeignText
    step: int | None = None
    exit_code: int | None = None
    error: ForeignObject | None = None


class Image(BaseModel):
    """An image; size in bytes. `source` says what it was made of; `machine` is the operator's."""

    id: str
    name: str
    state: Literal["building", "ready", "failed"]
    source: ForeignObject
    digest: str | None
    size_bytes: int
    created_at: datetime
    ended_at: datetime | None
    config: ForeignObject
    failure: ImageFailure | None


class ImagePage(Page):
    """The machine's images and the tenant's own, the newest first."""

    images: list[Image]


class PushImage(Strict):
    """Where to send it: HOST/REPOSITORY:TAG; `secret` and `auth_host` as in RegistrySource."""

    reference: Annotated[Text, Field(min_length=1, max_length=512)]
    secret: SecretName | None = None
    auth_host: AuthHost | None = None


class Pushed(BaseModel):
    """The digest of its manifest there."""

    reference: str
    digest: str


class ChangedFile(BaseModel):
    """A difference between two images."""

    path: str
    change: Literal["added", "changed", "removed"]
    size_bytes: int

    @classmethod
    def of(cls, found: Difference) -> "ChangedFile":
        """As the machine tells it."""
        path = "/" + found.path.decode(errors="replace")
        return cls(path=path, change=found.change, size_bytes=found.size)


class ImageDiff(BaseModel):
    """What differs between two images, by path; `truncated` when there is more."""

    changes: list[ChangedFile]
    truncated: bool

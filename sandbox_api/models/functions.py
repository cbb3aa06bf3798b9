"""Functions and their calls over the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from sandbox_api.functions import schedule
from sandbox_api.models.buckets import MountedBucket
from sandbox_api.models.common import (
    Environment,
    EnvName,
    ForeignObject,
    ForeignText,
    Page,
    Seconds,
    Strict,
    Text,
    UserName,
)
from sandbox_api.models.network import AskedPolicy, asked
from sandbox_api.models.sandboxes import Resources
from sandbox_api.models.volumes import MountedVolume, MountPath

Name = Annotated[Text, Field(pattern=r"^[A-Za-z_<][A-Za-z0-9_.<>-]{0,254}$")]
AppName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
FunctionId = Annotated[str, Field(pattern=r"^fun[a-z2-7]{26}$")]
RunId = Annotated[str, Field(pattern=r"^run[a-z2-7]{26}$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
BatchSize = 1000


class Retries(Strict):
    """So many more attempts after a failure, the first delay_s later, each next factor times as late, 60 s at most."""

    count: Annotated[int, Field(ge=0, le=100)] = 0
    delay_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 1.0
    factor: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)] = 2.0


class Schedule(Strict):
    """When a deployed function runs by itself: a cron expression in a time zone, or every so many seconds."""

    cron: Annotated[Text, Field(max_length=128)] | None = None
    timezone: Annotated[Text, Field(max_length=64)] = "UTC"
    period_s: Annotated[float, Field(ge=1, le=366 * 86400, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.cron is None) == (self.period_s is None):
            raise ValueError("give either cron or period_s")
        if self.cron is not None:
            schedule.check(self.cron, self.timezone)
        return self


class WebServer(Strict):
    """The port on which a web endpoint listens once its container is ready."""

    port: Annotated[int, Field(ge=1, le=65535)]


class CreateFunction(Strict):
    """A function: code (an upload, see PUT /v1/uploads), where it begins in there, and what its containers are like.

    The code is a tar archive that lies at `code/` beside the runner; it holds `isobox_inside/codec.py`, which loads
    `entry` and reads and writes values. The same again is the same function.

    snapshot: it says when its memory can be copied, and later containers begin from the copy. exits: it is told before
    a container without work ends. secrets: variables of its environment, and the secrets that they hold. restricted:
    its containers may not call other functions, nor use dicts and queues. web: its containers listen on a port, and it
    is reached by …/web instead of being called. run: of the app, for which it is made, and
    with which it goes (PUT /v1/runs/{id}).
    """

    app: AppName
    name: Name
    code: Digest
    entry: dict[str, Any]
    image: Annotated[Text, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "python"
    resources: Resources = Resources()
    env: Environment = {}
    user: UserName = "user"
    network: AskedPolicy | None = None
    volumes: Annotated[dict[MountPath, MountedVolume], Field(max_length=16)] = {}
    buckets: Annotated[dict[MountPath, MountedBucket], Field(max_length=8)] = {}
    secrets: Annotated[dict[EnvName, SecretName], Field(max_length=64)] = {}
    timeout_s: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 300.0
    retries: Retries = Retries()
    min_containers: Annotated[int, Field(ge=0, le=1000)] = 0
    max_containers: Annotated[int, Field(ge=1, le=1000)] = 8
    buffer_containers: Annotated[int, Field(ge=0, le=100)] = 0
    concurrency: Annotated[int, Field(ge=1, le=256)] = 1
    scaledown_s: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = 60.0
    snapshot: bool = False
    exits: bool = False
    schedule: Schedule | None = None
    web: WebServer | None = None
    trust: Literal["safe", "pickle"] = "safe"
    restricted: bool = False
    run: RunId | None = None

    @property
    def asked_network(self) -> dict[str, Any] | str | None:
        """The policy as its parser takes it."""
        return asked(self.network)


class Function(BaseModel):
    """A function, and what is going on in it."""

    id: str
    app: str
    name: str
    image: str
    created_at: datetime
    containers: int
    queued: int
    running: int
    web: bool


class FunctionLogs(BaseModel):
    """The last 64 KiB that a function's containers printed for no input, since the server's start."""

    text: ForeignText


class FunctionSandbox(Strict):
    """How long a sandbox that is like a function's containers is to live, in seconds."""

    timeout_s: Seconds = 3600.0


class FunctionPage(Page):
    """The tenant's functions, the newest first."""

    functions: list[Function]


class Argument(Strict):
    """An input: bytes in base64, or an upload."""

    data: Annotated[str, Field(max_length=512 << 10)] | None = None
    upload: Digest | None = None


class CreateCall(Strict):
    """A call with some of its inputs; with more, others follow. wait_s: answer with the results if they come in time.

    Who chooses the id can ask again without having it done twice. run: of the app, whose functions it may call in turn.
    """

    id: Annotated[str, Field(pattern=r"^cal[a-z2-7]{26}$")] | None = None
    inputs: Annotated[list[Argument], Field(max_length=BatchSize)]
    more: bool = False
    wait_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    run: RunId | None = None


class AddInputs(Strict):
    """Inputs of a call from the first-th on; what it has already is left as it is."""

    first: Annotated[int, Field(ge=0, le=1 << 31)]
    inputs: Annotated[list[Argument], Field(max_length=BatchSize)]
    more: bool = False


class CallResult(BaseModel):
    """What happened to an input: `done` (value), `error`, `yield` (value, number), `print` (text, stream), `cancelled`.

    A value is bytes in base64, or where it is large `file`: GET /v1/calls/{id}/values/{seq}.
    """

    seq: int
    index: int
    kind: Literal["done", "error", "yield", "print", "cancelled"]
    data: str | None = None
    file: int | None = None
    number: int | None = None
    stream: int | None = None
    text: ForeignText | None = None
    error: ForeignObject | None = None


class Call(BaseModel):
    """A call; complete once every input has ended and no more will come. results where they were asked for.

    more: there are results beyond next_after now.
    """

    id: str
    function: str
    created_at: datetime
    total: int
    ended: int
    complete: bool
    cancelled: bool
    results: list[CallResult] = []
    next_after: int = 0
    more: bool = False


class Wanted(BaseModel):
    """A function that a container asks for, by its name; of a class, with its parameters as they are written."""

    name: Annotated[str, Field(max_length=255)]
    parameters: Annotated[str, Field(max_length=2048)] | None = None


class NotMade(Wanted):
    """One that a client could not make, and why."""

    error: Annotated[str, Field(max_length=4000)]


class RunNews(Strict):
    """A client that runs an app says that it is there, which functions it has made, is making, and could not make."""

    app: AppName
    functions: Annotated[list[FunctionId], Field(max_length=10_000)] = []
    making: Annotated[list[Wanted], Field(max_length=1000)] = []
    failed: Annotated[list[NotMade], Field(max_length=1000)] = []


class RunAnswer(BaseModel):
    """What a client is to make; ended: the run is over."""

    wanted: list[Wanted] = []
    ended: bool = False


class Deploy(Strict):
    """A new version of an app: its functions, by their names in it."""

    functions: Annotated[
        dict[Name, Annotated[str, Field(pattern=r"^fun[a-z2-7]{26}$")]], Field(min_length=1, max_length=1000)
    ]


class RollBack(Strict):
    """The version that is to be in force again; the one before by default."""

    version: Annotated[int, Field(ge=1)] | None = None


class AppVersion(BaseModel):
    """A version: what it is made of, and of which earlier one it is a copy."""

    version: int
    created_at: datetime
    functions: dict[str, str]
    copy_of: int | None


class AppFunction(BaseModel):
    """A function of an app as it stands: its last call by schedule, and when the next one comes."""

    id: str
    trust: Literal["safe", "pickle"]
    web: bool
    last_call: str | None
    last_at: datetime | None
    next_at: datetime | None


class AppInfo(BaseModel):
    """A deployed app; version 0 once it is stopped."""

    name: str
    version: int
    functions: dict[str, AppFunction]
    history: list[AppVersion]


class AppPage(Page):
    """The tenant's apps, by name."""

    apps: list[AppInfo]

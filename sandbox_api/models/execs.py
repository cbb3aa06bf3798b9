"""Execs over the wire."""

import shlex
import signal
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from sandbox_api.models.common import (
    Argument,
    Command,
    Environment,
    ForeignObject,
    ForeignText,
    Page,
    Seconds,
    Strict,
    Text,
    UserName,
)

ExecId = Annotated[str, Field(pattern=r"^exe[a-z2-7]{26}$")]
OutcomeReason = Literal[
    "exit", "signal", "timeout", "oom", "killed", "not_found", "not_executable", "sandbox_ended", "lost"
]


class Pty(Strict):
    """A terminal of so many rows and columns."""

    rows: Annotated[int, Field(ge=1, le=1000)] = 24
    cols: Annotated[int, Field(ge=1, le=1000)] = 80


class ExecRequest(Strict):
    """What to run: argv as it stands, or shell through `sh -c`."""

    argv: Command | None = None
    shell: Argument | None = None
    env: Environment = {}
    workdir: Annotated[Text, Field(pattern=r"^/", max_length=4095)] | None = None
    user: UserName | None = None
    stdin: Annotated[str, Field(max_length=1 << 20)] | bool | None = None
    timeout_s: Seconds | None = None
    pty: Pty | None = None
    wait: bool = True
    max_output_bytes: Annotated[int, Field(ge=0, le=16 << 20)] = 65536
    overflow: Literal["drop", "block"] = "drop"
    exec_id: ExecId | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.argv is None) == (self.shell is None):
            raise ValueError("give either argv or shell")
        return self

    @property
    def command(self) -> list[str]:
        """The argv to start."""
        return self.argv if self.argv is not None else ["/bin/sh", "-c", self.shell or ""]

    @property
    def title(self) -> str:
        """The command as a person would type it."""
        return self.shell if self.shell is not None else shlex.join(self.argv or [])


class Outcome(BaseModel):
    """How an exec ended. exit_code is 128 + n for signal n, as a shell tells it."""

    reason: OutcomeReason
    exit_code: int | None = None
    signal: str | None = None


class Omission(BaseModel):
    """What is missing in the middle: bytes `from` to `to` of the stream; page them in with `output`."""

    omitted_bytes: int
    from_: int = Field(serialization_alias="from", validation_alias="from")
    to: int


class Truncation(BaseModel):
    """Which streams were cut."""

    stdout: Omission | None = None
    stderr: Omission | None = None


class ErrorFrame(BaseModel):
    """One level of a stack, the innermost last."""

    file: ForeignText
    line: int | None = None
    function: ForeignText | None = None
    source: ForeignText | None = None


class ExecError(BaseModel):
    """A failure as a model can read it."""

    kind: str
    name: ForeignText
    message: ForeignText
    frames: list[ErrorFrame] = []
    hint: ForeignText = ""


class Exec(BaseModel):
    """An exec as it stands; stdout and stderr keep head and tail within the request's budget.

    A run in a context is one too: `results` are what it showed, each {mime: value}, bytes as base64.
    """

    id: str
    sandbox_id: str
    argv: list[str]
    state: Literal["running", "exited"]
    started_at: datetime
    ended_at: datetime | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    max_rss_mb: float | None = None
    outcome: Outcome | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: Truncation | None = None
    error: ExecError | None = None
    forked_from: str | None = None
    context: str | None = None
    results: list[ForeignObject] = []


class ExecPage(Page):
    """Some of a sandbox's execs, the newest first; without their output."""

    execs: list[Exec]


def signal_number(text: str | int) -> int:
    """SIGTERM, TERM, term or 15; ValueError for what is no signal."""
    if isinstance(text, int) or text.isdecimal():
        number = int(text)
        if not 1 <= number <= 64:
            raise ValueError("signals are numbered from 1 to 64")
        return number
    name = text.upper()
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        raise ValueError(f"{text!r} is no signal; use a name such as SIGTERM or a number from 1 to 64") from None


Signal = Annotated[Annotated[str, Field(max_length=16)] | int, AfterValidator(signal_number)]


class SignalRequest(Strict):
    """A signal for the process, or with group for all that it started."""

    signal: Signal
    group: bool = True


class StdinReceipt(BaseModel):
    """How many bytes the process has been sent in all; fewer than given when it takes no more."""

    accepted_bytes: int
    closed: bool

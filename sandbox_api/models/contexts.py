"""Code contexts over the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from sandbox_api.models.common import Environment, Seconds, Strict, Text, UserName
from sandbox_api.models.execs import ExecId

Language = Literal["python", "node"]
Code = Annotated[Text, Field(max_length=1 << 20)]


class CreateContext(Strict):
    """An interpreter that keeps its state from one run to the next."""

    language: Language = "python"
    workdir: Annotated[Text, Field(pattern=r"^/", max_length=4095)] | None = None
    env: Environment = {}
    user: UserName | None = None


class Context(BaseModel):
    """A context; `busy` while something runs in it."""

    id: str
    sandbox_id: str
    language: Language
    state: Literal["running", "ended"]
    busy: bool
    runs: int
    created_at: datetime


class ContextList(BaseModel):
    """A sandbox's contexts, the oldest first."""

    contexts: list[Context]


class RunRequest(Strict):
    """Code to run in a context; past timeout_s it is interrupted."""

    code: Code
    timeout_s: Seconds | None = None
    wait: bool = True
    max_output_bytes: Annotated[int, Field(ge=0, le=16 << 20)] = 65536
    exec_id: ExecId | None = None


class RunAnywhere(RunRequest):
    """Code to run in the default context of a language, which is made when it is first used."""

    language: Language = "python"

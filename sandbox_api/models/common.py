"""What the models of several resources share."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from common.text import clean_json, clean_text


class Strict(BaseModel):
    """A request: unknown fields are refused, so that a typo is no silence."""

    model_config = ConfigDict(extra="forbid")


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    text.encode()  # a lone surrogate is no text
    return text


Text = Annotated[str, AfterValidator(_no_nul)]
Argument = Annotated[Text, Field(max_length=128 << 10)]


def _program(argv: list[str]) -> list[str]:
    if not argv[0]:
        raise ValueError("the program's name is empty")
    return argv


Command = Annotated[list[Argument], Field(min_length=1, max_length=4096), AfterValidator(_program)]
EnvName = Annotated[str, Field(pattern=r"^[^=\x00]+$", max_length=4096), AfterValidator(_no_nul)]
Environment = Annotated[dict[EnvName, Argument], Field(max_length=4096)]
UserName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$")]
Label = Annotated[Text, Field(max_length=256)]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
# Of answers: what a guest, a registry or an archive said. Rows and logs of older servers hold it as it came.
ForeignText = Annotated[str, BeforeValidator(lambda text: clean_text(text) if isinstance(text, str) else text)]
ForeignObject = Annotated[dict[str, Any], BeforeValidator(clean_json)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]


def time_of(epoch_s: float | None) -> datetime | None:
    """A moment as answers give it: UTC."""
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC)


class Page(BaseModel):
    """Where a list goes on; `next_cursor` is null at its end."""

    next_cursor: str | None = None


class ProblemDocument(BaseModel):
    """RFC 9457 application/problem+json."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    retryable: bool
    request_id: str

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobox.dockerfile import DockerfileError, parse

FULL = r"""
# a comment
ARG VERSION=3.1
ARG BASE=python
FROM ${BASE} AS main
LABEL a=b
ENV ONE=1 TWO="two words"
ENV OLD style of words
RUN apt-get update && \
    # in the middle
    apt-get install -y x
WORKDIR /app
WORKDIR sub
COPY a.txt "b c.txt" ./
COPY --chown=1:1 src /srv/src
ADD ["x y", "/opt/x"]
RUN ["echo", "a b", "$HOME"]
RUN echo $VERSION ${ONE}
ENV PATH=/opt:$TWO\$x LATE=${NONE:-later} UP=${ONE:+up}
EXPOSE 80
CMD ["python3"]
"""


def test_the_common_instructions() -> None:
    plan = parse(FULL)
    assert plan.base == "python"
    assert plan.ignored == ["LABEL", "EXPOSE", "CMD"]
    exports = "export VERSION=3.1\nexport BASE=python\n"
    assert plan.steps == [
        {"env": {"ONE": "1", "TWO": "two words"}},
        {"env": {"OLD": "style of words"}},
        {"run": exports + "apt-get update &&      apt-get install -y x"},
        {"workdir": "/app"},
        {"workdir": "/app/sub"},
        (["a.txt", "b c.txt"], "/app/sub/"),
        (["src"], "/srv/src"),
        (["x y"], "/opt/x"),
        {"run": exports + "echo 'a b' '$HOME'"},
        {"run": exports + "echo $VERSION ${ONE}"},
        {"env": {"PATH": "/opt:two words$x", "LATE": "later", "UP": "up"}},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no FROM"),
        ("RUN true", "line 1: RUN: the first instruction has to be FROM"),
        ("FROM a\nFROM b", "several stages"),
        ("FROM a\nONBUILD RUN x", "line 2: ONBUILD is not supported"),
        ("FROM a\nRUN --mount=type=cache true", "--mount=type=cache is not supported"),
        ("FROM a\nCOPY --from=b x y", "--from=b is not supported"),
        ("FROM a\nCOPY x", "expected a source and a target"),
        ("FROM a\nADD https://x/y /z", "only files of the build's folder"),
        ("FROM a\nRUN <<EOF\nx\nEOF", "here-documents"),
        ("FROM a\nENV ONE", "ONE has no value"),
        ("FROM a\nRUN [nothing", "no JSON"),
        ("FROM a\nRUN true \\", "goes on nowhere"),
        ("FROM a\nENV A='b", "No closing quotation"),
    ],
)
def test_what_cannot_be_followed_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(DockerfileError, match=words.replace("[", r"\[")):
        parse(text)


@given(st.text(alphabet="FROMRUNCOPYENV \"'\\$={}[]\n/abc-", max_size=120))
def test_no_text_breaks_the_parser(text: str) -> None:
    for whole in (text, f"FROM a\n{text}"):
        with contextlib.suppress(DockerfileError):
            parse(whole)

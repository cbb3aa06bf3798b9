"""Dockerfiles as steps of a build: the common instructions. Pure.

Source of the grammar: Dockerfile reference (docs.docker.com). What is not known is refused with its line, not skipped.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_NO_EFFECT = {"EXPOSE", "LABEL", "MAINTAINER", "STOPSIGNAL", "HEALTHCHECK", "VOLUME", "CMD", "ENTRYPOINT", "USER"}
_VARIABLE = re.compile(r"\\\$|\$(?:\{(\w+)(?::([-+])([^}]*))?\}|(\w+))")

_KEPT = "\ue000{}\ue001"
_KEPT_PLACE = re.compile("\ue000([0-9]+)\ue001")


class DockerfileError(ValueError):
    """An instruction that cannot be followed."""


@dataclass(slots=True)
class Plan:
    """What a Dockerfile asks for: an image below, and steps; of a copy, (sources, target)."""

    base: str = ""
    steps: list[dict[str, Any] | tuple[list[str], str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def parse(text: str) -> Plan:
    """Take a Dockerfile apart; DockerfileError names the line that cannot be followed."""
    plan, arguments, env, workdir = Plan(), dict[str, str](), dict[str, str](), "/"
    for number, word, rest in _instructions(text):
        where = f"line {number}: {word}"
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments.setdefault(name.strip(), _unquoted(default, where))
            continue
        values = arguments | env
        if word not in ("RUN", "ENV", "COPY", "ADD"):
            rest = _expand(rest, values)
        if word == "FROM":
            if plan.base:
                raise DockerfileError(f"{where}: builds of several stages are not supported")
            plan.base = (rest.split() or [""])[0]
        elif not plan.base:
            raise DockerfileError(f"{where}: the first instruction has to be FROM")
        elif word == "RUN":
            plan.steps.append({"run": _with_arguments(_command(rest, where), arguments)})
        elif word == "ENV":
            env |= (found := _pairs(rest, values, where))
            plan.steps.append({"env": found})
        elif word == "WORKDIR":
            workdir = rest if rest.startswith("/") else f"{workdir.rstrip('/')}/{rest}"
            plan.steps.append({"workdir": workdir})
        elif word in ("COPY", "ADD"):
            plan.steps.append(_copy(rest, values, workdir, where))
        elif word in _NO_EFFECT:
            plan.ignored.append(word)
        else:
            raise DockerfileError(f"{where} is not supported")
    if not plan.base:
        raise DockerfileError("there is no FROM")
    return plan


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        began = began or number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + "\n"
            continue
        whole, pending = pending + line, ""
        word, _, rest = whole.strip().partition(" ")
        if rest.lstrip().startswith("<<"):
            raise DockerfileError(f"line {began}: here-documents are not supported")
        yield began, word.upper(), rest.replace("\ue000", "").strip()
        began = 0
    if pending:
        raise DockerfileError(f"line {began}: the last line goes on nowhere")


def _expand(text: str, values: dict[str, str]) -> str:
    def one(match: re.Match[str]) -> str:
        if match[0] == "\\$":
            return "$"
        name, how, other = match[1] or match[4], match[2], match[3]
        if how == "+":
            return other if name in values else ""
        return values.get(name) or (other or "" if how == "-" else values.get(name, ""))

    return _VARIABLE.sub(one, text)


def _with_arguments(command: str, arguments: dict[str, str]) -> str:
    """ARGs are variables of a RUN, and of nothing later."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in arguments.items()) + command


def _command(rest: str, where: str) -> str:
    if rest.startswith("--"):
        raise DockerfileError(f"{where}: {rest.split()[0]} is not supported")
    if rest.startswith("["):
        return shlex.join(_list(rest, where))
    return rest.replace("\n", " ")


def _list(rest: str, where: str) -> list[str]:
    try:
        found = json.loads(rest)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise DockerfileError(f"{where}: the list is no JSON")
    return found


def _pairs(rest: str, values: dict[str, str], where: str) -> dict[str, str]:
    first = rest.split(None, 1)
    if first and "=" not in first[0]:
        if len(first) == 1:
            raise DockerfileError(f"{where}: {first[0]} has no value")
        return {first[0]: _expand(first[1], values)}
    found = {}
    for each in _words(rest, where, values):
        name, equals, value = each.partition("=")
        if not equals:
            raise DockerfileError(f"{where}: {each} has no value")
        found[name] = value
    return found


def _copy(rest: str, values: dict[str, str], workdir: str, where: str) -> tuple[list[str], str]:
    words = _list(_expand(rest, values), where) if rest.startswith("[") else _words(rest, where, values)
    flags = [each for each in words if each.startswith("--")]
    if any(not each.startswith(("--chown=", "--chmod=")) for each in flags):
        raise DockerfileError(f"{where}: {flags[0]} is not supported")
    *sources, target = [each for each in words if not each.startswith("--")] or [""]
    if not sources:
        raise DockerfileError(f"{where}: expected a source and a target")
    if any(re.match(r"[a-z]+://|git@", each) for each in sources):
        raise DockerfileError(f"{where}: only files of the build's folder are copied")
    return sources, target if target.startswith("/") else f"{workdir.rstrip('/')}/{target.removeprefix('./')}"


def _words(rest: str, where: str, values: dict[str, str] | None = None) -> list[str]:
    """Words as a shell splits them; what a variable holds is never split, nor looked into for quotes."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(_expand(match[0], values or {}))
        return _KEPT.format(len(kept) - 1)

    try:
        words = shlex.split(_VARIABLE.sub(keep, rest) if values is not None else rest)
    except ValueError as error:
        raise DockerfileError(f"{where}: {error}") from None
    return [_KEPT_PLACE.sub(lambda match: kept[int(match[1])], word) for word in words]


def _unquoted(text: str, where: str) -> str:
    return "".join(_words(text, where))

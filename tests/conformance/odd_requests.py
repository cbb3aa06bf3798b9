"""Requests made from our OpenAPI document: some as it allows, the others with a value that nobody expects.

Everything comes from one `random.Random`, so that a seed stands for the same requests each time.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote

METHODS = ("get", "put", "post", "patch", "delete", "head")
_RAW = "raw json token: "


def raw(token: str) -> str:
    """A value that stands in the body as this token, which Python's encoder would not write."""
    return _RAW + token


ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, -0.0, 1e308, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**300, raw("1e999"), raw("-1e999"),
    raw("NaN"), raw("Infinity"), raw("1" * 5000), raw('"\\ud800"'), raw('"a\\udfffb"'), raw('{"\\ud800": 1}'), raw("[" * 300 + "]" * 300),
    raw("[" * 20 + "]" * 20), "", " ", "\0", "a\0b", "\x1b[31m", "\u202e", "\u2028", "²", "١٢", "💥", "é" * 255, "a" * 300, "a" * 70_000, "%00", "../../etc",
    "..", "/", "//", "/proc/self/mem", "\\", "*", "'", '"', "{}", "{0}", "%s", "null", "-", "0", "-1", "1e999", "nan", "sha256:" + "0" * 64,
    "sbx" + "a" * 26, "exe" + "a" * 26, "user:nobody-here", "[red]x[/]", "[/x]", [], [None], ["a"] * 2000, [[]], {}, {"": ""}, {"a": {"b": []}}, [{}] * 3,
]  # fmt: skip
ODD_TEXTS: list[bytes] = [
    b"", b"%00", b"%ff%fe", b"%ED%A0%80", b"%F0%9F%92%A5", b"-1", b"0", b"1e999", b"nan", b"inf", b"1" * 400, b"9223372036854775808", b"%C2%B2",
    b"%D9%A1", b"a" * 3000, b"..", b"%2e%2e", b"%2F", b"%2F%2F", b"%5C", b"%0d%0aX:%20y", b"true", b"null", b"[]", b"%1b[31m", b"x:y", b":", b"a%00:b%00",
    b"%3A", b"+", b"%", b"%zz", b"bytes", b"e30", b"W10", b"/%ff%fe", b"/tmp/%ED%A0%80", b"/%00", b"/a%0ab", b"/" + b"a/" * 1500, b"AA", b"Lw", b"WzEsMl0", b"WzFlOTk5LCJhIl0", b"W05hTiwiYSJd", b"WyJhIiwiYiJd", b"WzEsIlx1ZDgwMCJd",
]  # fmt: skip
ODD_HEADERS: list[tuple[bytes, bytes]] = [
    *((b"range", value) for value in (
        b"bytes=-0", b"bytes=0-0", b"bytes=0-", b"bytes=-1", b"bytes=5-2", b"bytes=0-0,2-3", b"bytes=", b"items=0-1", b"bytes=99999999999999999-",
        b"bytes=-999999999999999999", b"bytes=0-999999999999999999", b"bytes=a-b", b"bytes=\xb2-", b"bytes = 0-1", b"BYTES=0-1", b"",
    )),
    *((b"idempotency-key", value) for value in (b"k", b"\xff\xfe", b"k" * 255, b"k" * 256, b"")),
    *((b"last-event-id", value) for value in (b"-1", b"abc", b"9223372036854775808", b"1e3", b"\xb2", b"")),
    *((b"content-type", value) for value in (b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data", b"\xff", b"")),
    (b"content-encoding", b"gzip"), (b"accept", b"text/html"), (b"expect", b"100-continue"), (b"if-range", b'"x"'), (b"x-http-method-override", b"DELETE"),
    (b"x-forwarded-for", b"\xff"), (b"origin", b"null"), (b"cookie", b"\xff=1"),
]  # fmt: skip
ODD_BODIES: list[bytes] = [
    b"", b"{", b"[]", b"null", b"0", b'"x"', b"\xff\xfe\x00", b"\x00" * 600, b"{}" * 2, b'{"a":' * 40 + b"1" + b"}" * 40, b'{"a":1,"a":2}', b"[" * 100_000,
    b'{"\\ud800":1}', b"1e999", b"NaN", b"\xef\xbb\xbf{}", b"\x1f\x8b" + b"x" * 50, b"\x28\xb5\x2f\xfd" + b"x" * 50, bytes(range(256)) * 8,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path takes; `body` is the schema of a JSON body, `bytes_body` says that it takes bytes."""

    method: str
    path: str
    id: str
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    bytes_body: bool = False
    statuses: frozenset[int] = frozenset()


@dataclass(slots=True)
class Request:
    """A request as it goes out: target with query."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    content: bytes | None = None


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """All that the document names, in its order."""
    for path, methods in document["paths"].items():
        for method in METHODS:
            if (said := methods.get(method)) is None:
                continue
            content = said.get("requestBody", {}).get("content", {})
            yield Operation(
                method.upper(),
                path,
                said["operationId"],
                tuple(said.get("parameters", ())),
                content.get("application/json", {}).get("schema"),
                method in ("put", "post") and not content,
                frozenset(int(status) for status in said["responses"]),
            )


class Generator:
    """Makes requests: `known` gives by a field's name values that mean something to the server."""

    def __init__(self, document: dict[str, Any], random: Random, known: dict[str, list[Any]]) -> None:
        self._schemas = document["components"]["schemas"]
        self._random = random
        self._known = known

    def valid(self, operation: Operation) -> Request:
        """One that the document allows."""
        return self._request(operation, odd_parameter=None, odd_body=False)

    def odd(self, operation: Operation) -> Request:
        """One that is odd in a parameter, in its body, or in a header."""
        choices: list[Any] = [parameter["name"] for parameter in operation.parameters]
        if operation.body is not None or operation.bytes_body:
            choices += ["body"] * (len(choices) + 1)
        choices.append("header")
        chosen = self._random.choice(choices)
        request = self._request(operation, odd_parameter=chosen, odd_body=chosen == "body")
        if chosen == "header":
            name, value = self._random.choice(ODD_HEADERS)
            request.headers = [each for each in request.headers if each[0] != name] + [(name, value)]
        return request

    # ---- parts

    def _request(self, operation: Operation, *, odd_parameter: str | None, odd_body: bool) -> Request:
        target, query, headers = operation.path, [], []
        for parameter in operation.parameters:
            name, place = parameter["name"], parameter["in"]
            odd = name == odd_parameter
            waits = name in ("timeout_s", "wait_s")  # left out, they are long
            if not odd and not waits and not parameter.get("required") and self._random.random() < 0.6:
                continue
            known = f"{place} {name}" if f"{place} {name}" in self._known else name
            text = self._random.choice(ODD_TEXTS) if odd else self._text(self.value(parameter["schema"], known))
            if place == "path":
                target = target.replace("{" + name + "}", text.decode() or "%20")
            elif place == "query":
                query.append(name.encode() + b"=" + text)
            else:
                headers.append((name.lower().encode(), text.replace(b"%", b"")[:100]))
        content = None
        if operation.body is not None:
            headers.append((b"content-type", b"application/json"))
            content = self._odd_body(operation.body) if odd_body else encode(self.value(operation.body, ""))
        elif operation.bytes_body:
            content = self._random.choice(ODD_BODIES if odd_body else self._known["bytes"])
        return Request(operation.method, target + ("?" + b"&".join(query).decode() if query else ""), headers, content)

    def _text(self, value: Any) -> bytes:
        if isinstance(value, list):
            value = value[0] if value else ""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return quote(text, safe=":/").encode()

    def _odd_body(self, schema: dict[str, Any]) -> bytes:
        if self._random.random() < 0.15:
            return self._random.choice(ODD_BODIES)
        value = self.value(schema, "", full=self._random.random() < 0.5)
        places = list(_places(value))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            if not places:
                break
            holder, key = self._random.choice(places)
            odd = self._random.choice(ODD_VALUES)
            how = self._random.random()
            if isinstance(holder, dict) and how < 0.1:
                holder.pop(key, None)
            elif isinstance(holder, dict) and how < 0.2:
                holder[str(odd)[:50]] = odd
            elif isinstance(holder, dict) or key < len(holder):
                holder[key] = odd
        return encode(value)

    def value(self, schema: dict[str, Any], name: str, *, full: bool = False) -> Any:
        """A value that a schema allows; with full all optional fields are there."""
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        if name in self._known and (fitting := self._fitting(name, schema)):
            return self._random.choice(fitting)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(self._random.choice(schema[several]), name, full=full)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._object(schema, full)
        if kind == "array":
            count = max(schema.get("minItems", 0), self._random.choice((1, 1, 2)))
            return [self.value(schema.get("items", {}), name) for _ in range(count)]
        return self._scalar(kind, schema)

    def _fitting(self, name: str, schema: dict[str, Any]) -> list[Any]:
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
        alternatives = [self._resolved(each) for each in schema.get("anyOf", [schema])]
        return [
            value
            for value in self._known[name]
            if any(
                each.get("type") is None
                or (isinstance(value, kinds.get(each["type"], str)) and re.search(each.get("pattern", ""), str(value)))
                for each in alternatives
            )
        ]

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return found

    def _object(self, schema: dict[str, Any], full: bool) -> dict[str, Any]:
        required = schema.get("required", ())
        made = {
            name: self.value(each, name)
            for name, each in schema.get("properties", {}).items()
            if name in required or full or self._random.random() < 0.3
        }
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and not made:
            made[self._scalar("string", schema.get("propertyNames", {}))] = self.value(more, "value")
        return made

    def _scalar(self, kind: str | None, schema: dict[str, Any]) -> Any:
        if kind == "boolean":
            return self._random.choice((True, False))
        if kind in ("integer", "number"):
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            return low + (1 if "exclusiveMinimum" in schema else self._random.choice((0, 1)))
        if kind == "null":
            return None
        texts = [text for text in self._known["text"] if re.search(schema.get("pattern", ""), text)]
        if not texts:
            raise LookupError(f"no known text matches {schema.get('pattern')!r}: add one")
        return self._random.choice(texts)[: schema.get("maxLength", 1 << 20)]


def encode(value: Any) -> bytes:
    """The body, with `raw` values as they stand."""
    text = json.dumps(value)
    return re.sub(f'"{_RAW}((?:[^"\\\\]|\\\\.)*)"', lambda match: str(json.loads(f'"{match[1]}"')), text).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a value: what holds it, and its key there."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])

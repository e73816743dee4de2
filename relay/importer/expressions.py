"""Rules about the client's certificate, in httpd's expressions, as `allow` and `deny`.

relay has lists: a client must match one entry of `allow`, and none of `deny`. An `or`
of equalities is one such list, a `not` of them the other. Everything else raises
NotPossibleError, so that no rule becomes wider than it was.

Never: drops a part of a condition that relay cannot judge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relay.config.rules.access import entry_fault

Lists = dict[str, list[str]]

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<variable>%\{[^}]*\}) |
    (?P<regex>m(?P<mark>[/\#,|!@~])(?:(?!(?P=mark)).)*(?P=mark)[a-z]* | /(?:\\.|[^/\\])*/[a-z]*) |
    (?P<string>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*') |
    (?P<operator>==|!=|=~|!~|>=|<=|&&|\|\||[-=<>!(){},]) |
    (?P<word>[^\s"'(){},=!<>&|]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_EQUAL = frozenset({"eq", "==", "=", "-eq", "-in"})
_NUMBERS = frozenset({"SSL_CIPHER_USEKEYSIZE"})
_UNEQUAL = frozenset({"ne", "!=", "-ne"})
_KEYS = {
    "SSL_CLIENT_S_DN_CN": "cn",
    "SSL_CLIENT_S_DN_OU": "ou",
    "SSL_CLIENT_SAN_EMAIL": "email",
    "SSL_CLIENT_SAN_DNS": "san_dns",
    "SSL_CLIENT_I_DN": "issuer",
    "SSL_CLIENT_M_SERIAL": "serial",
}
_EXTENSION_KEYS = {"URI": "san_uri", "DNS": "san_dns", "EMAIL": "email", "IP ADDRESS": "ip"}
_OLD_CIPHERS = re.compile(r"m?/\^\((?:EXP|NULL|ADH|RC4|DES|MD5|\|)*\)-?/")
_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}]")
_MOST_TOKENS = 2_000
_DEEPEST = 50


class NotPossibleError(Exception):
    """relay cannot judge this; the text says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a condition demands. No `allow` is every certificate of the CA."""

    allow: Lists = field(default_factory=dict)
    deny: Lists = field(default_factory=dict)


ALWAYS = Rule()


def merged(one: Lists, other: Lists) -> Lists:
    """Both lists, each entry once."""
    found = {kind: list(entries) for kind, entries in one.items()}
    for kind, entries in other.items():
        mine = found.setdefault(kind, [])
        mine += [each for each in entries if each not in mine]
    return found


def both(one: Rule, other: Rule) -> Rule:
    """Both rules must hold."""
    if one.allow and other.allow and one.allow != other.allow:
        raise NotPossibleError('it is an "and" of two conditions, and entries of allow are an "or"')
    return Rule(one.allow or other.allow, merged(one.deny, other.deny))


def either(one: Rule, other: Rule) -> Rule:
    """One of the rules must hold."""
    if ALWAYS in (one, other):
        return ALWAYS
    if one.deny or other.deny:
        raise NotPossibleError('it is an "or" with a "not" in it')
    return Rule(merged(one.allow, other.allow))


def negated(rule: Rule) -> Rule:
    """The rule must not hold."""
    if rule == ALWAYS or (rule.allow and rule.deny):
        raise NotPossibleError('it is a "not" of a condition that is not one list')
    return Rule(rule.deny, rule.allow)


def parse_rule(text: str) -> Rule:
    """The rule that an expression stands for. Raises NotPossibleError."""
    return _Reader(text).whole()


class _Reader:
    """A recursive descent over the tokens of an expression."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None or len(self._tokens) > _MOST_TOKENS:
                raise NotPossibleError(
                    f"the importer does not understand it at {text[at : at + 20]!r}"
                )
            kind = match.lastgroup if match.lastgroup != "mark" else "regex"
            self._tokens.append((kind or "", match[kind or 0]))
            at = match.end()
        self._at = self._depth = 0

    def whole(self) -> Rule:
        if not self._tokens:
            raise NotPossibleError("it is empty")
        rule = self._or()
        if self._at < len(self._tokens):
            raise NotPossibleError(f"the importer does not understand it at {self._peek()!r}")
        return rule

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise NotPossibleError("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _or(self) -> Rule:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotPossibleError("its parentheses are nested too deeply")
        rule = self._and()
        while self._peek().lower() in {"or", "||"}:
            self._next()
            rule = either(rule, self._and())
        self._depth -= 1
        return rule

    def _and(self) -> Rule:
        rule = self._not()
        while self._peek().lower() in {"and", "&&"}:
            self._next()
            rule = both(rule, self._not())
        return rule

    def _not(self) -> Rule:
        nots = 0
        while self._peek().lower() in {"not", "!"}:
            self._next()
            nots += 1
        if self._peek() == "(":
            self._next()
            rule = self._or()
            if self._next()[1] != ")":
                raise NotPossibleError("a parenthesis is not closed")
        else:
            rule = self._comparison()
        return negated(rule) if nots % 2 else rule

    def _comparison(self) -> Rule:
        kind, left = self._next()
        if kind == "word" and left.lower() == "true":
            return ALWAYS
        if kind == "string" and self._peek().lower() in {"in", "-in"}:
            self._next()
            return self._extension(_unquoted(left))
        name = left[2:-1].upper() if kind == "variable" else _unquoted(left)
        operator = self._next()[1].lower()
        if operator == "-":  # -eq, -in
            operator += self._next()[1].lower()
        if operator in {"in", "-in"}:
            return _equal(name, self._list())
        if operator in {"=~", "!~"}:
            regex = self._next()[1]
            if operator == "!~" and name == "SSL_CIPHER" and _OLD_CIPHERS.fullmatch(regex):
                return ALWAYS  # relay never uses these
            rule = _matching(name, regex)
            return negated(rule) if operator == "!~" else rule
        kind, right = self._next()
        right = _unquoted(right)
        if kind not in {"string", "word"} or "%{" in right:
            raise NotPossibleError(f"it compares {name} with {right}, not with a text")
        if operator in {"-eq", "-ne"} and name not in _NUMBERS:
            raise NotPossibleError(f"{operator} compares numbers; write == or != if you mean text")
        if operator in _UNEQUAL:
            return negated(_equal(name, [right]))
        if operator in _EQUAL:
            return _equal(name, [right])
        if name == "SSL_CIPHER_USEKEYSIZE" and operator in {">=", "-ge", "ge"} and right == "128":
            return ALWAYS
        raise NotPossibleError(f"relay does not compare {name} with {operator}")

    def _list(self) -> list[str]:
        if self._next()[1] != "{":
            raise NotPossibleError("a list in braces is missing")
        found = []
        while self._peek() != "}":
            kind, text = self._next()
            if text == ",":
                continue
            if kind not in {"string", "word"}:
                raise NotPossibleError(f"its list has {text!r}")
            if "%{" in text:
                raise NotPossibleError(f"its list has {text}, which is not a text")
            found.append(_unquoted(text))
        self._next()
        return found

    def _extension(self, wanted: str) -> Rule:
        """`"URI:…" in PeerExtList("subjectAltName")`."""
        name = self._next()[1].lower()
        if name == "peerextlist" and self._next()[1] == "(":
            extension = _unquoted(self._next()[1]).lower()
            kind, _, value = wanted.partition(":")
            key = _EXTENSION_KEYS.get(kind.upper())
            if self._next()[1] == ")" and extension in {"subjectaltname", "2.5.29.17"} and key:
                return _texts(key, [value])
        raise NotPossibleError("relay looks at no extension but subjectAltName")


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text


def _equal(name: str, values: list[str]) -> Rule:
    if name in {"HTTPS", "SSL_CLIENT_VERIFY"}:
        if {each.upper() for each in values} & {"ON", "SUCCESS"}:
            return ALWAYS
        raise NotPossibleError("relay admits verified clients only")
    key = _KEYS.get(re.sub(r"_[0-9]+$", "", name))
    if key is None:
        raise NotPossibleError(_why_no_key(name))
    if key == "issuer":
        values = [_rfc4514(each) for each in values]
    return _texts(key, values)


def _texts(key: str, values: list[str]) -> Rule:
    """Texts as they are: in relay, `*` and networks would be more than that."""
    if key in {"email", "san_dns", "san_uri"} and any("*" in each for each in values):
        raise NotPossibleError(f"in {key}, * is a pattern, and here it is a text")
    if key == "ip" and any("/" in each for each in values):
        raise NotPossibleError("an address is compared here, and this is a network")
    return _entries(key, values)


def _why_no_key(name: str) -> str:
    if name.startswith("SSL_CLIENT_"):
        return f"relay has no list for {name}; use fingerprint_sha256, or a name that it has"
    return f"relay sees the certificate only, not {name}"


def _entries(key: str, values: list[str]) -> Rule:
    if not values:
        raise NotPossibleError("its list is empty")
    if key in {"serial", "san_dns"}:  # as `config.values` has them
        values = [each.lower().replace(":", "") for each in values]
    for each in values:
        fault = entry_fault(key, each)
        if fault:
            raise NotPossibleError(f"as {key}, {each!r} {fault}")
    return Rule({key: values})


def _rfc4514(name: str) -> str:
    """`/C=DE/O=Example/CN=CA`, httpd's old form, the other way round."""
    if not name.startswith("/"):
        return ",".join(part.strip() for part in name.split(", "))
    parts = re.split(r"/(?=[A-Za-z0-9.]+=)", name[1:])
    return ",".join(part.replace(",", "\\,") for part in reversed(parts))


def _matching(name: str, regex: str) -> Rule:
    """A regular expression that stands for a few whole values, or for a mail domain."""
    match = re.fullmatch(r"(?:m(.)|(/))(.*)\W([a-z]*)", regex, re.DOTALL)
    if match is None or match[4]:
        raise NotPossibleError("relay has no regular expressions")
    body = match[3].replace("\\/", "/")
    key = _KEYS.get(re.sub(r"_[0-9]+$", "", name))
    if key == "email" and (domain := re.fullmatch(r"@((?:[\w-]|\\\.)+)\$", body)):
        return _entries(key, ["*@" + domain[1].replace("\\.", ".")])
    whole = re.fullmatch(r"\^\(?(?:\?:)?(.*?)\)?\$", body, re.DOTALL)
    if whole is None or ("(" in body) != (")" in body):
        raise NotPossibleError("relay has no regular expressions, only whole values")
    values = []
    for part in whole[1].split("|"):
        plain = re.sub(r"\\([^\w\s])", "", part)
        if _SPECIAL.search(plain) or ("|" in whole[1] and "(" not in body):
            raise NotPossibleError("relay has no regular expressions, only whole values")
        values.append(re.sub(r"\\([^\w\s])", r"\1", part))
    return _equal(name, values)

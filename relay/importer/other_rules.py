"""Rules about clients that are not Require: <If>, RewriteRule, Allow and Deny, OCSP.

relay has none of these. One that looks at the client's certificate closes the route,
and a note names each of the others.

Never: turns one of them into `allow` or `deny`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from relay.importer.report import Report
from relay.importer.tree import Directive, Scope, walk

NOT_JUDGED = "relay does not judge this rule any more"
RULES = frozenset({"require", "sslrequire", "requireall", "requireany", "requirenone"})
_IFS = frozenset({"if", "elseif", "else"})
PER_REQUEST = _IFS | {"limit", "limitexcept", "files", "filesmatch"}
_REWRITES = frozenset({"rewritecond", "rewriterule"})
_DECISIONS = RULES | {"allow", "deny", "order", "proxypass", "proxypassmatch", "redirect"}
_DECISIONS |= {"rewriterule", "redirectmatch", "sethandler"}
# Flags of a rule with "-" that only sets variables, cookies or types.
_FLAG = r"\s*(?:E|env|CO|cookie|T|type|NE|NC|nocase)\b[^,\]]*"
_HARMLESS = re.compile(rf"\[{_FLAG}(?:,{_FLAG})*\]", re.IGNORECASE)
_REFUSES = re.compile(r"\[(?:.*,)?\s*(?:F|G|forbidden|gone|R=4\d\d)\s*(?:,.*)?\]", re.IGNORECASE)


def names_certificate(text: str) -> bool:
    """Whether a condition looks at the client's certificate, except at its presence."""
    plain = text.upper().replace("SSL_CLIENT_VERIFY", "")
    return "SSL_CLIENT_" in plain or "PEEREXT" in plain


def by_certificate(directives: Sequence[Directive], inherited: Scope) -> list[Directive]:
    """The lines that decide by the certificate in a way for which relay has no list."""
    every = list(walk(directives))
    if not any(map(_inherits, (*inherited.own, *inherited.server))):
        top = {each for each in inherited.server if each.name in _REWRITES}
        every = [each for each in every if each not in top]
    variables = [
        each
        for each in every
        if each.name in {"setenvif", "setenvifnocase", "setenvifexpr", "rewritecond"}
        and names_certificate(each.rest)
    ]

    def looks(each: Directive) -> bool:
        """At the certificate, or at a variable that was set by it."""
        return names_certificate(each.rest) or bool(variables and "env" in each.rest.lower())

    found = [
        each
        for each in every
        if each.name in {"require", "allow", "deny"}
        and re.search(r"(?i)\benv\b", each.rest)
        and looks(each)
    ]
    for section in every:
        if section.name in PER_REQUEST:
            inside = [each for each in walk(section.children) if each.name in RULES]
            found += [each for each in inside if names_certificate(each.rest)]
    branches = [each for each in every if each.name in _IFS]
    if any(looks(each) for each in branches):
        inside = [each for each in walk(branches) if each.name in _DECISIONS]
        found += [*branches, *inside] if inside else []
    found += [each for each in every if each.name == "secrule" and looks(each)]
    found += _rewrites(every, looks)
    return list(dict.fromkeys(found))


def _inherits(each: Directive) -> bool:
    return each.name == "rewriteoptions" and "inherit" in each.rest.lower()


def _rewrites(
    every: Sequence[Directive], looks: Callable[[Directive], bool]
) -> Iterator[Directive]:
    conditions: list[Directive] = []
    for each in every:
        if each.name == "rewritecond":
            conditions.append(each)
        elif each.name == "rewriterule":
            harmless = each.arg(1) == "-" and _HARMLESS.fullmatch(each.arg(2))
            if not harmless and any(map(looks, [*conditions, each])):
                yield from (*conditions, each)
            conditions = []


def refusing_rewrites(directives: Sequence[Directive], report: Report) -> None:
    """A note about each RewriteRule that refuses requests."""
    for each in walk(directives):
        if each.name == "rewriterule" and _REFUSES.fullmatch(each.arg(2)) and not report.has(each):
            report.note(f"{NOT_JUDGED}: {each.text} of {each.place}")


def is_closed(directives: Sequence[Directive], report: Report) -> bool:
    """Whether Order, Allow and Deny refuse everybody. A note about each other rule."""
    lines = [each for each in directives if each.name in {"allow", "deny"}]
    order = Scope(directives).last("order")
    allow_first = order is not None and order.rest.lower().replace(" ", "") != "deny,allow"
    words = {(each.name, " ".join(each.rest.lower().split())) for each in lines}
    everybody = ("allow", "from all") in words
    if ("deny", "from all") not in words and not any(each.name == "deny" for each in lines):
        if not allow_first or everybody:
            return False
    elif everybody and not allow_first:
        return False
    for each in lines:
        report.note(f"{NOT_JUDGED}: {each.text} of {each.place}")
    if Scope(directives).value("satisfy") == "any":
        return False
    allows = any(each.name == "allow" for each in lines)
    return not allows or (allow_first and ("deny", "from all") in words)


def note_responders(scope: Scope, label: str, report: Report) -> None:
    """A note if httpd asked OCSP responders about clients."""
    if scope.value("sslocspenable") in {"on", "leaf"}:
        what = "httpd refused clients by OCSP; relay admits them until a list in crl has them"
        report.note(f"{label}: SSLOCSPEnable: {what}")

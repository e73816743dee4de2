"""What decides which lines of a configuration count: modules, defines, versions.

Never: asks this machine anything except through `exists`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# The release whose rules the importer follows.
HTTPD_VERSION = (2, 4, 62)
# Compiled into httpd itself on every common distribution.
_BUILT_IN = {"core", "so", "http", "log_config", "logio", "version", "unixd", "watchdog"}
_VARIABLE = re.compile(r"\$\{([^}\s]+)\}")
_SHELL = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)")
_COMPARISONS: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "=": lambda one, other: one == other,
    "==": lambda one, other: one == other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
}


class Conditions:
    """The modules and variables that are known at this line of the configuration."""

    def __init__(
        self,
        variables: Mapping[str, str],
        defines: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> None:
        self.variables = dict(variables)
        self.defines = dict(defines)
        self._exists = exists
        self._modules = set(_BUILT_IN)
        self._knows_modules = False

    def load_module(self, name: str, file: str) -> None:
        """Note a LoadModule line."""
        self._knows_modules = True
        self._modules |= {_module(name), _module(file.rpartition("/")[2])}

    def expand(self, text: str) -> tuple[str, list[str]]:
        """The text with its variables replaced, and the names that are unknown."""
        unknown: list[str] = []

        def value(match: re.Match[str]) -> str:
            name = match[1]
            found = self.defines.get(name, self.variables.get(name))
            if found is None:
                unknown.append(name)
                return match[0]
            return found

        return _VARIABLE.sub(value, text), unknown

    def holds(self, section: str, args: tuple[str, ...]) -> bool:
        """Whether the lines inside this section count."""
        first = args[0] if args else ""
        negated = first.startswith("!")
        name = first.removeprefix("!")
        if section == "ifversion":
            return self._version(args)
        if section == "ifmodule":
            # A part of a configuration loads no modules. Then all of them may be there.
            found = _module(name) in self._modules or not self._knows_modules
        elif section == "ifdefine":
            found = name in self.defines
        elif section == "iffile":
            found = self._exists(name)
        else:  # ifdirective, ifsection: all of httpd 2.4 exist
            found = True
        return found != negated

    @staticmethod
    def _version(args: tuple[str, ...]) -> bool:
        words = list(args)
        negated = bool(words) and words[0].startswith("!")
        if negated:
            words[0] = words[0][1:]
            words = [word for word in words if word]
        if len(words) == 1:
            words.insert(0, "=")
        operator, wanted = ([*words, "", ""])[:2]
        if operator == "~" or wanted.startswith("/"):
            try:
                pattern = wanted.strip("/")
                found = re.search(pattern, ".".join(map(str, HTTPD_VERSION))) is not None
            except (re.error, RecursionError):
                found = False
            return found != negated
        numbers = tuple(int(each) for each in re.findall(r"[0-9]{1,6}", wanted)[:3])
        compare = _COMPARISONS.get(operator, _COMPARISONS["="])
        return compare(HTTPD_VERSION[: len(numbers) or 1], numbers or (0,)) != negated


def _module(name: str) -> str:
    """`mod_ssl.c`, `ssl_module` and `mod_ssl.so` are the same module."""
    plain = name.lower().removesuffix(".c").removesuffix(".so").removesuffix("_module")
    plain = plain.removeprefix("mod_")
    return "http" if plain == "http_core" else plain


def read_envvars(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that Debian's `envvars` sets. Only plain assignments are read."""
    found = dict(variables)
    for line in text.splitlines():
        match = _ASSIGNMENT.fullmatch(line.partition(" #")[0].rstrip())
        if not match or "##" in match[2] or "$(" in match[2] or "`" in match[2]:
            continue
        value = match[2].strip()
        if value[:1] in {'"', "'"} and value.endswith(value[0]):
            value = value[1:-1]
        found[match[1]] = _SHELL.sub(lambda each: found.get(each[1] or each[2], ""), value)
    return found

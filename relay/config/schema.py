"""The JSON Schema of the configuration, for editors.

Types, limits and defaults are those of the model, the descriptions those of
conf/relay.toml. It accepts every file that `config.load` accepts, and every file that
such a file includes, but it knows less: a rule between two keys is not in it.

Never: reads a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from relay.config.explain import choices_of, fields_of, unwrap
from relay.config.model import Config
from relay.config.reference import explanations, read_reference
from relay.config.section import Keepalive, Off
from relay.config.values import OneOrMore

# Understood by all editors; nothing newer is needed.
_DRAFT = "http://json-schema.org/draft-07/schema#"
_TEXT = {"type": "string"}
# In place of a number or a boolean: one reference, ${NAME} or ${file:PATH}. A pattern
# holds only for strings, the limits only for numbers.
_ONE_REFERENCE = r"^\$\{[^{}]+\}$"
_WITH_REFERENCE = {"type": "string", "pattern": r"\$\{"}
# What another file may have: an included file may only add to a listener or a pool.
_ELSEWHERE = {("listener", "listen"), ("listener", "route"), ("pool", "backend")}

Json = dict[str, Any]


def json_schema(reference: str) -> Json:
    """The schema of a configuration; `reference` is the text of conf/relay.toml."""
    texts = explanations(read_reference(reference))
    return {"$schema": _DRAFT, "title": "relay.toml", **_Schema(texts).of_model(Config, "")}


class _Schema:
    def __init__(self, texts: Mapping[tuple[str, str], str]) -> None:
        self._texts = texts

    def of_model(self, model: type[BaseModel], where: str) -> Json:
        """The schema of a section. The top requires nothing: a file may be a part."""
        fields = {key: field for key, field in fields_of(model).items() if not field.exclude}
        properties = {key: self._of_key(model, key, where) for key in fields}
        schema: Json = {"type": "object", "additionalProperties": False, "properties": properties}
        required = [
            key
            for key, field in fields.items()
            if field.is_required() and (where, key) not in _ELSEWHERE
        ]
        return schema | ({"required": required} if required and model is not Config else {})

    def _of_key(self, model: type[BaseModel], key: str, where: str) -> Json:
        field = fields_of(model)[key]
        path = f"{where}.{key}".removeprefix(".")
        constraints = list(field.metadata)
        choices = [self._of_type(each, path, constraints) for each in choices_of(field.annotation)]
        if Off in constraints:
            choices.append({"const": False})
        if _LISTED in constraints:
            choices.append(_TEXT)
        schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
        described = {"description": self._description(model, key, where)}
        default = None if field.is_required() else _shown(field.default)
        if default is None and Off in constraints:
            default = False
        return described | ({} if default is None else {"default": default}) | schema

    def _description(self, model: type[BaseModel], key: str, where: str) -> str:
        field = fields_of(model)[key]
        path = f"{where}.{key}".removeprefix(".")
        if text := self._texts.get((where, key)) or field.description:
            return text
        if (path, "") in self._texts:
            return self._texts[path, ""]
        section = _section_of(field.annotation)
        return _sentence((section.__doc__ or "").partition(": ")[2]) if section else ""

    def _of_type(self, annotation: Any, path: str, constraints: Iterable[Any]) -> Json:
        bare, own = unwrap(annotation)
        limits = _limits([*constraints, *own])
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            return self.of_model(bare, path)
        kind = get_origin(bare)
        if kind is tuple:
            items = self._of_type(get_args(bare)[0], path, ())
            return {"type": "array", "items": items, **_renamed(limits, "minItems")}
        if kind is dict:
            values = self._of_type(get_args(bare)[1], path, ())
            found = {"type": "object", "additionalProperties": values}
            return found | _renamed(limits, "minProperties")
        if kind is not None:  # Literal
            return {"anyOf": [{"enum": list(get_args(bare))}, _WITH_REFERENCE]}
        names = {bool: "boolean", int: "integer", float: "number"}
        if bare in names:
            return {"type": [names[bare], "string"], **limits, "pattern": _ONE_REFERENCE}
        return _TEXT


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The model in a type: itself, in a list, or in a table of names."""
    for each in choices_of(annotation):
        bare = unwrap(each)[0]
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            return bare
        if get_origin(bare) in {tuple, dict}:
            # A list is tuple[item, ...], a table dict[name, item].
            return _section_of(get_args(bare)[0 if get_origin(bare) is tuple else 1])
    return None


def _sentence(text: str) -> str:
    """The first paragraph of a docstring as a sentence."""
    said = " ".join(text.partition("\n\n")[0].split()).replace("`", "")
    return said[:1].upper() + said[1:]


_LISTED = unwrap(OneOrMore)[1][-1]


def _limits(constraints: Iterable[Any]) -> Json:
    """The limits of a value, as JSON Schema names them."""
    words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "min_length": "least"}
    return {
        words[name]: value
        for each in constraints
        for name in words
        if (value := getattr(each, name, None)) is not None
    }


def _renamed(limits: Json, name: str) -> Json:
    return {name: limits["least"]} if "least" in limits else {}


def _shown(default: Any) -> Any:
    """A default as JSON; None if there is none to show."""
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json") if isinstance(default, Keepalive) else None
    if isinstance(default, tuple):
        return list(default)
    return default if default is None or isinstance(default, bool | int | float) else str(default)

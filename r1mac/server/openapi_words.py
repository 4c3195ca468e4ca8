"""JSON Schema in few words: https://json-schema.org/draft/2020-12."""

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


def string(**limits: Any) -> Json:
    """Return a text's schema."""
    return {"type": "string", **limits}


def number(**limits: Any) -> Json:
    """Return a number's schema."""
    return {"type": "number", **limits}


def integer(**limits: Any) -> Json:
    """Return a whole number's schema."""
    return {"type": "integer", **limits}


def boolean() -> Json:
    """Return the schema of true and false."""
    return {"type": "boolean"}


def choice(*words: str) -> Json:
    """Return the schema of one of some words."""
    return {"type": "string", "enum": list(words)}


def array(items: Json, **limits: Any) -> Json:
    """Return a list's schema."""
    return {"type": "array", "items": items, **limits}


def one_of(*schemas: Json) -> Json:
    """Return the schema of what fits any of some."""
    return {"anyOf": list(schemas)}


def maybe(schema: Json) -> Json:
    """Return the schema of what may be null."""
    return one_of(schema, {"type": "null"})


def ref(name: str) -> Json:
    """Return the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(*, optional: Json | None = None, **needed: Json) -> Json:
    """Return an object's schema: *needed* fields and *optional* ones, which may be null too; others are ignored."""
    more = {name: maybe(schema) for name, schema in (optional or {}).items()}
    return {"type": "object", "required": list(needed), "properties": {**needed, **more}}

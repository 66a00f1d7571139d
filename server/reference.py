"""GET /docs: the OpenAPI document as one page, with nothing to fetch from anywhere."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final

from litestar import Response, get

from specdec.server.openapi import Json, openapi_document

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #06c; --method: #0a7; }
@media (prefers-color-scheme: dark) { :root { --link: #6bf; --method: #4d9; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 4rem; }
h1 { margin-bottom: 0; } h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; } h3 { margin-top: 2rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: 13px/1.5 ui-monospace, monospace; } pre { background: var(--soft); overflow: auto; padding: .75rem; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; vertical-align: top; }
.method { color: var(--method); font-weight: 600; text-transform: uppercase; } .note { opacity: .7; }
nav ul { columns: 2; list-style: none; padding: 0; }
"""
_HEADERS: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"}


@get("/docs", status_code=200)
async def reference() -> Response[str]:
    """The page."""
    return Response(_page(), media_type="text/html", headers=_HEADERS)


@functools.cache
def _page() -> str:
    return reference_page(openapi_document())


def reference_page(document: Json) -> str:
    """A page of HTML for a document such as `openapi_document` makes."""
    return "".join(_parts(document))


def _parts(document: Json) -> Iterator[str]:
    info, schemas = document["info"], document["components"]["schemas"]
    title = f"{info['title']} {info['version']}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1><p>{_text(info['summary'])} "
    yield 'The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
    yield "<p>A server with API keys wants one, as <code>Authorization: Bearer KEY</code> or "
    yield "<code>x-api-key: KEY</code>. Every answer has an <code>x-request-id</code>.</p>"
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    yield "<nav><ul>"
    for method, path, operation in operations:
        yield f'<li><a href="#{operation["operationId"]}">{_route(method, path)}</a></li>'
    yield "</ul></nav>"
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for method, path, operation in operations:
            if tag["name"] in operation["tags"]:
                yield from _operation(method, path, operation)
    yield "<h2>Types</h2>"
    for name, schema in schemas.items():
        yield f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>'
        yield from _schema(schema)
    yield "</body></html>"


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f'<h3 id="{operation["operationId"]}">{_route(method, path)}</h3><p>{_text(operation["summary"])}.</p>'
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>"
    for parameter in operation.get("parameters", []):
        yield f"<p><code>{escape(parameter['name'])}</code>: {_text(parameter['description'])}</p>"
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield f"<p>Body: {_type(content['schema'])}</p>"
        if "example" in content:
            yield f"<pre>{escape(_curl(path, content['example']))}</pre>"
    yield "<table><tr><th>status</th><th>answer</th><th></th></tr>"
    for status, response in operation["responses"].items():
        kinds = "<br>".join(
            f'{_type(content["schema"])} <span class="note">{escape(media_type)}</span>'
            for media_type, content in response["content"].items()
        )
        yield f"<tr><td>{status}</td><td>{kinds}</td><td>{_text(response['description'])}</td></tr>"
    yield "</table>"


def _schema(schema: Json) -> Iterator[str]:
    if "description" in schema:
        yield f"<p>{_text(schema['description'])}</p>"
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    required = set(schema.get("required", []))
    yield "<table><tr><th>field</th><th>type</th><th></th></tr>"
    for name, field in schema["properties"].items():
        note = "required" if name in required else ""
        if field.get("default") is not None:
            note = f"default {_value(field['default'])}"
        yield f'<tr><td><code>{escape(name)}</code></td><td>{_type(field)}</td><td class="note">{note}</td></tr>'
    yield "</table>"


def _type(schema: Json) -> str:
    """A schema in words, with links to the types that it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "x-event-schema" in schema:
        return f"events of {_type(schema['x-event-schema'])}"
    if "anyOf" in schema:
        return _alternatives(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return _alternatives(_value(each) for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([escape(str(kind)), *bounds])


def _alternatives(kinds: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(kinds))


def _value(value: Any) -> str:
    # Any: a constant or a default is any JSON.
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _text(text: str) -> str:
    """Prose, in which backticks hold code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _route(method: str, path: str) -> str:
    return f'<span class="method">{escape(method)}</span> <code>{escape(path)}</code>'


def _curl(path: str, body: Json) -> str:
    text = json.dumps(body, indent=2).replace("'", "'\\''")
    return f"curl http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d '{text}'"

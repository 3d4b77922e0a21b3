"""Rendering a chat template with a short conversation, in jinja2's sandbox.

Used in a confined child only. The environment is the one that transformers gives its templates.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwenstack.hub.safety.template_tree import EXTENSIONS

_OUTPUT_CHARACTERS_MAX: Final = 1024 * 1024

# What a template that was written for other messages may raise; anything else ends the child.
_MISTAKES: Final = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip

_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look the weather up.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_CONVERSATION: Final = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "What is new?"},
]


class Rendered(msgspec.Struct, frozen=True):
    """What came of it. `error` is the template's own refusal or mistake, which is no finding."""

    escaped: str = ""
    too_long: bool = False
    error: str = ""


def render(source: str) -> Rendered:
    """Render with and without tools; stops at the first that says more than a scan needs."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))

    reached: list[str] = []

    class Watched(ImmutableSandboxedEnvironment):
        """Notes what the template reaches for, also where it makes nothing of the refusal."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            """Whether the sandbox lets the template have it."""
            safe: bool = super().is_safe_attribute(obj, attr, value)
            if not safe:
                reached.append(f"access to {attr!r} of {type(obj).__name__}")
            return safe

    environment = Watched(trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now(UTC).strftime(pattern)
    error = ""
    for given in ({"tools": [_TOOL], "documents": None}, {"tools": None, "enable_thinking": False}):
        try:
            template = environment.from_string(source)
            length = 0
            for piece in template.generate(
                messages=_CONVERSATION, add_generation_prompt=True, bos_token="<s>",  # noqa: S106
                eos_token="</s>", **given,  # noqa: S106
            ):  # fmt: skip
                length += len(piece)
                if length > _OUTPUT_CHARACTERS_MAX:
                    return Rendered(too_long=True)
        except SecurityError as problem:
            return Rendered(escaped=str(problem)[:300])
        except OverflowError:
            return Rendered(too_long=True)  # a range over the sandbox's limit
        except (TemplateError, *_MISTAKES) as problem:
            error = f"{type(problem).__name__}: {problem}"[:300]
        if reached:
            return Rendered(escaped=reached[0][:300])
    return Rendered(error=error)

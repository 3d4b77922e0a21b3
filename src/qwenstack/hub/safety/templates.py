"""Chat templates: read as a syntax tree and judged there, then rendered once where it can't hurt.

A template is a program that comes with the weights and sees every conversation. The tree shows
what it could reach (attributes of Python's own, imports, calls) and what text it adds that no user
wrote; rendering shows what it takes. Both happen in a confined child.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from qwenstack.hub.safety.confined import ConfinedError, Limits, run_confined
from qwenstack.hub.safety.findings import Finding, Findings

_CHARACTERS_MAX: Final = 128 * 1024
_TEMPLATES_MAX: Final = 32
_CHILD: Final = "qwenstack.hub.safety.template_child"
_LIMITS: Final = Limits(seconds=4, memory_bytes=512 * 1024 * 1024)


class TemplateRequest(msgspec.Struct, frozen=True):
    """What the child is given: sources by a name for messages, and whether to render them."""

    templates: dict[str, str]
    render: bool


class TemplateAnswer(msgspec.Struct, frozen=True):
    """What it found."""

    findings: tuple[Finding, ...]


def check_templates(templates: Mapping[str, str], found: Findings) -> None:
    """Note what these chat templates (by a name for messages) could do, and did when rendered."""
    if len(templates) > _TEMPLATES_MAX:
        found.add("unscanned", f"it holds {len(templates)} chat templates, over {_TEMPLATES_MAX}")
    given: dict[str, str] = {}
    for name, source in list(templates.items())[:_TEMPLATES_MAX]:
        if len(source) > _CHARACTERS_MAX:
            found.add("unscanned", f"the chat template has {len(source)} characters", name)
        else:
            given[name] = source
    if given:
        _check(given, found)


def _check(templates: dict[str, str], found: Findings) -> None:
    try:
        answer = run_confined(_CHILD, TemplateRequest(templates, True), TemplateAnswer, _LIMITS)
    except ConfinedError as error:
        found.add("template-bomb", f"reading and rendering it was {error}")
        # What the tree shows is worth knowing beside that.
        try:
            answer = run_confined(
                _CHILD, TemplateRequest(templates, False), TemplateAnswer, _LIMITS
            )
        except ConfinedError:
            return
    for finding in answer.findings:
        found.add(finding.rule, finding.message, finding.place)

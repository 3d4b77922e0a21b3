"""Run in a confined child: reads chat templates, and renders those that their trees let pass."""

from __future__ import annotations

from qwenstack.hub.safety.confinement import answer_with
from qwenstack.hub.safety.findings import Findings
from qwenstack.hub.safety.rendering import render
from qwenstack.hub.safety.template_tree import check_tree
from qwenstack.hub.safety.templates import TemplateAnswer, TemplateRequest


def check(request: TemplateRequest) -> TemplateAnswer:
    """What the trees show, and what rendering did."""
    found = Findings()
    for name, source in request.templates.items():
        if not check_tree(name, source, found) or not request.render:
            continue
        rendered = render(source)
        if rendered.escaped:
            found.add("template-escape", f"the sandbox stopped it: {rendered.escaped}", name)
        elif rendered.too_long:
            found.add("template-bomb", "rendering four messages gives over 1 MiB of text", name)
    return TemplateAnswer(found.all)


if __name__ == "__main__":
    answer_with(check, TemplateRequest)

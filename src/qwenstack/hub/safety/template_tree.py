"""A chat template's syntax tree: what it could reach, and what text it adds that no user wrote.

Used in a confined child only: a hostile source can make parsing long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from qwenstack.hub.safety.findings import Findings

_N = TypeVar("_N", bound=nodes.Node)

_LOOPS_NESTED_MAX: Final = 4
_REPEAT_MAX: Final = 100_000  # also the sandbox's own limit on a range

_PRIVATE: Final = re.compile(r"__\w+__|^_|^(mro|(gi|cr|ag|tb|f)_(frame|code|globals|builtins)\w*)$")
_DUNDER: Final = re.compile(r"__[a-z]\w*(__)?")
_FUNCTIONS: Final = frozenset(
    {"range", "namespace", "raise_exception", "strftime_now", "dict", "loop", "caller"}
)
_METHODS: Final = frozenset(
    {
        "append", "capitalize", "count", "cycle", "changed", "endswith", "extend", "find", "format",
        "get", "index", "insert", "isalpha", "isdigit", "isspace", "items", "join", "keys", "lower",
        "lstrip", "replace", "reverse", "rfind", "rsplit", "rstrip", "split", "splitlines",
        "startswith", "strip", "title", "update", "upper", "values",
    }
)  # fmt: skip
_WORDS: Final = re.compile(r"[A-Za-z]{2,}")
# What marks up a conversation, such as <|im_start|>, [INST] or </think>.
_TOKEN: Final = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{1,40}\]")
_MARKUP: Final = re.compile(r"[<>\[\]{}|/\\#=]")
_HIDDEN_CHARACTERS: Final = re.compile(
    "[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_ORDERS: Final = re.compile(
    r"(ignore|disregard|forget) (all |any |the )?(previous|prior|above|earlier)"
    r"|(do not|don't|never) (tell|reveal|mention|disclose)[^.]{0,40}(user|this|that)"
    r"|without (telling|informing|the user)|https?://(?!json-schema\.org|www\.w3\.org)",
    re.IGNORECASE,
)
_ORDERED_WORDS_MIN: Final = 5


class GenerationTag(Extension):
    """`{% generation %}`, with which transformers marks what the assistant says: here, a block."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse to the closing tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


EXTENSIONS: Final[tuple[str | type[Extension], ...]] = ("jinja2.ext.loopcontrols", GenerationTag)
"""What transformers gives its templates beyond jinja2's own tags."""


def check_tree(name: str, source: str, found: Findings) -> bool:
    """Note what the tree shows; whether anything is left to learn from rendering it."""
    if match := _HIDDEN_CHARACTERS.search(source):
        found.add("template-hidden", f"it holds the invisible U+{ord(match[0]):04X}", name)
    environment = Environment(  # noqa: S701 (nothing is rendered, and no HTML)
        trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS
    )
    try:
        tree = environment.parse(source)
        judge = _Judge(name, tree, found)
        judge.judge()
    except TemplateError as error:
        found.add("template-syntax", f"jinja2 can't parse it: {error}", name)
        return False
    except RecursionError:
        found.add("template-bomb", "it nests too deeply to be parsed", name)
        return False
    return not judge.condemned


class _Judge:
    """Walks one tree."""

    def __init__(self, name: str, tree: nodes.Template, found: Findings) -> None:
        self._name = name
        self._tree = tree
        self._found = found
        self._macros = {macro.name for macro in tree.find_all(nodes.Macro)}
        self._known = set(_known_filters())
        self.condemned = False

    def judge(self) -> None:
        """Note everything in the tree."""
        for node in self._tree.find_all(nodes.Node):
            self._judge_node(node)
        self._judge_loops(self._tree, 0)
        for statement in self._tree.find_all(nodes.If):
            self._judge_condition(statement, statement.test, statement.body)
        for choice in self._tree.find_all(nodes.CondExpr):
            self._judge_condition(choice, choice.test, [choice.expr1])

    def _add(self, rule: str, words: str, node: nodes.Node) -> None:
        place = f"{self._name}, line {node.lineno}" if self._name else f"line {node.lineno}"
        self._found.add(rule, words, place)
        self.condemned = self.condemned or rule in ("template-escape", "template-bomb")

    def _judge_node(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Import | nodes.FromImport | nodes.Include | nodes.Extends):
            self._add("template-escape", f"it loads another file ({type(node).__name__})", node)
        elif isinstance(node, nodes.Getattr):
            if _PRIVATE.search(node.attr):
                self._add("template-escape", f"it reaches for .{node.attr}", node)
        elif isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Concat | nodes.Add) and _constants(node.arg):
                self._add("template-escape", "it puts a key together from pieces", node)
        elif isinstance(node, nodes.Const):
            if isinstance(node.value, str):
                self._judge_text(node.value, node)
        elif isinstance(node, nodes.TemplateData):
            if match := _ORDERS.search(node.data):
                self._add("template-hidden", f"it says {_around(node.data, match)!r}", node)
        elif isinstance(node, nodes.Name):
            if _DUNDER.fullmatch(node.name):
                self._add("template-escape", f"it reaches for {node.name}", node)
        elif isinstance(node, nodes.Call):
            self._judge_call(node)
        elif isinstance(node, nodes.Filter):
            self._judge_filter(node)
        elif isinstance(node, nodes.Mul | nodes.Pow):
            self._judge_product(node)

    def _judge_text(self, text: str, node: nodes.Node) -> None:
        if match := _DUNDER.search(text):
            if match[1] or len(text) == len(match[0]):
                self._add("template-escape", f"it names {match[0]}", node)
        elif match := _ORDERS.search(text):
            self._add("template-hidden", f"it says {_around(text, match)!r}", node)

    def _judge_call(self, node: nodes.Call) -> None:
        target = node.node
        if isinstance(target, nodes.Name):
            if target.name == "range":
                self._judge_range(node)
            elif target.name not in _FUNCTIONS and target.name not in self._macros:
                self._add("template-call", f"it calls {target.name}()", node)
        elif isinstance(target, nodes.Getattr):
            if target.attr not in _METHODS:
                self._add("template-call", f"it calls .{target.attr}()", node)
        else:
            self._add("template-call", "it calls what it computes", node)

    def _judge_range(self, node: nodes.Call) -> None:
        for argument in node.args:
            value = argument.value if isinstance(argument, nodes.Const) else 0
            if isinstance(value, int) and abs(value) > _REPEAT_MAX:
                self._add("template-bomb", f"it counts to {value}", node)

    def _judge_filter(self, node: nodes.Filter) -> None:
        if node.name == "attr":
            self._add("template-call", "it reads attributes by computed names", node)
        elif node.name not in self._known:
            self._add("template-call", f"it uses the unknown filter {node.name}", node)

    def _judge_product(self, node: nodes.Mul | nodes.Pow) -> None:
        for side in (node.left, node.right):
            value = side.value if isinstance(side, nodes.Const) else 0
            limit = 100 if isinstance(node, nodes.Pow) else _REPEAT_MAX
            if isinstance(value, int) and abs(value) > limit:
                self._add("template-bomb", f"it multiplies by {value}", node)

    def _judge_loops(self, node: nodes.Node, depth: int) -> None:
        for child in node.iter_child_nodes():
            inner = depth + isinstance(child, nodes.For)
            if inner > _LOOPS_NESTED_MAX and isinstance(child, nodes.For):
                self._add("template-bomb", f"its loops nest {inner} deep", child)
            elif inner <= _LOOPS_NESTED_MAX:
                self._judge_loops(child, inner)

    def _judge_condition(
        self, node: nodes.Node, test: nodes.Node, bodies: Sequence[nodes.Node]
    ) -> None:
        """Text of several words that is only said when something else is said, or on a day."""
        trigger = _trigger(test)
        if trigger is None:
            return
        for text in _said(bodies):
            plain = _TOKEN.sub(" ", text)
            if len(_WORDS.findall(plain)) >= _ORDERED_WORDS_MIN:
                shown = " ".join(plain.split())[:120]
                self._add("template-hidden", f"it adds {shown!r} only when {trigger}", node)
                return


def _trigger(test: nodes.Node) -> str | None:
    """What words or date the test waits for, if it looks for any in a conversation."""
    for call in _all(test, nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now":
            return "the date is right"
        if isinstance(call.node, nodes.Getattr) and call.node.attr in ("startswith", "endswith"):
            words = _prose(call.args[:1])
            if words:
                return f"a text has {words!r}"
        if isinstance(call.node, nodes.Getattr) and call.node.attr in ("find", "count", "index"):
            words = _prose(call.args[:1])
            if words:
                return f"a text has {words!r}"
    for compare in _all(test, nodes.Compare):
        for operand in compare.ops:
            words = _prose([compare.expr])
            if operand.op == "in" and words and _reads_content(operand.expr):
                return f"a text has {words!r}"
            words = _prose([operand.expr])
            if operand.op == "eq" and words and _reads_content(compare.expr):
                return f"a text is {words!r}"
    return None


def _reads_content(expression: nodes.Node) -> bool:
    """Whether it is a message's text, or a variable that may hold it; not a role or a type."""
    names = [node.attr for node in _all(expression, nodes.Getattr)]
    names += [
        n.arg.value for n in _all(expression, nodes.Getitem) if isinstance(n.arg, nodes.Const)
    ]
    if names and names[0] in ("role", "type", "name"):
        return False
    named = {node.name for node in _all(expression, nodes.Name)}
    return "content" in names or any("content" in name or "text" in name for name in named)


def _prose(expressions: Sequence[nodes.Node]) -> str | None:
    """A constant with a word in it and none of the signs that mark up a conversation."""
    for expression in expressions:
        for node in _all(expression, nodes.Const):
            text = node.value
            if isinstance(text, str) and _WORDS.search(text) and not _MARKUP.search(text):
                return text[:60]
    return None


def _said(body: Sequence[nodes.Node]) -> Iterator[str]:
    """The texts that these nodes may put out themselves."""
    for node in body:
        for leaf in _all(node, nodes.TemplateData):
            yield leaf.data
        for constant in _all(node, nodes.Const):
            if isinstance(constant.value, str):
                yield constant.value


def _all(node: nodes.Node, kind: type[_N]) -> Iterator[_N]:
    """The node itself, if it is one, and all below it."""
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _constants(node: nodes.Node) -> bool:
    return any(isinstance(constant.value, str) for constant in node.find_all(nodes.Const))


def _known_filters() -> list[str]:
    return [*Environment().filters, "tojson", "from_json", "fromjson"]  # noqa: S701


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(match.start() - 20, 0) : match.end() + 60]

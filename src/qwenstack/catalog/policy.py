"""Policy: which references a team allows, decided over what `which` (and a dossier) says of them.

A policy is a TOML file of rules. Each rule looks at one thing (layer, licence, operator, region,
certificate, age, how sure the identification is) and says allow, warn or deny with its reason; the
decision is the strictest of them. An exception lifts named rules for named references, has an
owner, and ends on a date. What is unknown is never taken for allowed: each rule says what happens
then, and warns if the file does not.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.catalog.model import Status
from qwenstack.catalog.which.answer import UNKNOWN, Answer, GoverningKind
from qwenstack.core import licences
from qwenstack.core.layers import Layer

_FILE_BYTES_MAX: Final = 256 * 1024
_EXCEPTION_DAYS_MAX: Final = 366
_VERSION: Final = 1


class PolicyError(ValueError):
    """A policy file that can't be used; the message names file, field, value and way out."""


class Outcome(enum.Enum):
    """What a rule says; the strictest one of all rules is the decision."""

    ALLOW = "allow"
    WARN = "warn"
    DENY = "deny"

    @property
    def strictness(self) -> int:
        """0 for allow, 2 for deny."""
        return ("allow", "warn", "deny").index(self.value)


class Rule(enum.Enum):
    """What a policy can look at."""

    LAYER = "layer"
    LICENCE = "licence"
    CONFLICT = "conflict"
    OPERATOR = "operator"
    TERMS = "terms"
    REGION = "region"
    CERTIFICATE = "certificate"
    AGE = "age"
    STATUS = "status"
    RETIRED = "retired"


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Layers(_Strict, frozen=True, kw_only=True):
    """`allow`: the layers that may be used; `unknown`: what to say where none was found."""

    allow: tuple[Layer, ...] = tuple(Layer)
    unknown: Outcome = Outcome.WARN


class Licences(_Strict, frozen=True, kw_only=True):
    """Licences of weights by id or category; `deny` wins, and an id in `allow` needs no category.

    Without `allow` and `categories` every licence that is not denied is allowed. `conflict` is said
    where sources contradict each other about the licence.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    categories: tuple[licences.Category, ...] = ()
    unknown: Outcome = Outcome.WARN
    conflict: Outcome = Outcome.WARN


class Api(_Strict, frozen=True, kw_only=True):
    """Operators of APIs and their terms, by name or id; empty allows all.

    `retired` is said for a hosted name that has ended.
    """

    operators: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    unknown: Outcome = Outcome.WARN
    retired: Outcome = Outcome.DENY


class Regions(_Strict, frozen=True, kw_only=True):
    """Where an API may run; empty allows all. Weights that you run are where you run them."""

    allow: tuple[str, ...] = ()
    unknown: Outcome = Outcome.WARN


class Certificate(_Strict, frozen=True, kw_only=True):
    """The least certificate that a deployment must have. `levels` are in rising order."""

    minimum: str = ""
    levels: tuple[str, ...] = ("smoke", "standard", "full")
    missing: Outcome = Outcome.DENY


class Age(_Strict, frozen=True, kw_only=True):
    """How many days after its release a model may be used; None allows all ages."""

    maximum_days: int | None = None
    outcome: Outcome = Outcome.WARN
    unknown: Outcome = Outcome.ALLOW


class Evidence(_Strict, frozen=True, kw_only=True):
    """The least status of the identification: `verified`, `reported`, or `unknown` for any."""

    minimum: Status = Status.UNKNOWN
    outcome: Outcome = Outcome.WARN


class Exemption(_Strict, frozen=True, kw_only=True):
    """`rules` do not apply to `reference` (a name, or a pattern with `*`) until `expires`."""

    reference: str
    rules: tuple[Rule, ...]
    owner: str
    reason: str
    expires: datetime.date


class Policy(_Strict, frozen=True, kw_only=True):
    """The whole file."""

    version: int
    layers: Layers = Layers()
    licences: Licences = Licences()
    api: Api = Api()
    regions: Regions = Regions()
    certificate: Certificate = Certificate()
    age: Age = Age()
    evidence: Evidence = Evidence()
    exception: tuple[Exemption, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """What one rule says, and why."""

    rule: Rule
    outcome: Outcome
    text: str


class Decision(msgspec.Struct, frozen=True):
    """The strictest outcome, and every rule's reason: the deciding ones first."""

    decision: Outcome
    reasons: tuple[Reason, ...]


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What a dossier knows beyond the reference: where it runs and what it passed."""

    region: str | None = None
    certificate: str | None = None


def evaluate(
    policy: Policy, answer: Answer, today: datetime.date, deployed: Deployed | None = None
) -> Decision:
    """Decide over `answer`; `deployed` adds what only a deployment has.

    A snippet that names several models is decided by the strictest of them.
    """
    if answer.parts:
        decisions = [evaluate(policy, part, today, deployed) for part in answer.parts]
        return _decision(
            Reason(reason.rule, reason.outcome, f"{part.reference}: {reason.text}")
            for part, each in zip(answer.parts, decisions, strict=True)
            for reason in each.reasons
        )
    return _decision(
        _excepted(policy, answer, reason, today)
        for reason in _reasons(policy, answer, today, deployed or Deployed())
    )


def _decision(reasons: Iterable[Reason]) -> Decision:
    ordered = sorted(reasons, key=lambda each: -each.outcome.strictness)
    return Decision(ordered[0].outcome if ordered else Outcome.ALLOW, tuple(ordered))


def _excepted(policy: Policy, answer: Answer, reason: Reason, today: datetime.date) -> Reason:
    if reason.outcome is Outcome.ALLOW:
        return reason
    for each in policy.exception:
        names = (answer.reference, answer.repo or "", answer.release or "")
        if reason.rule not in each.rules or not any(
            fnmatch.fnmatchcase(name.casefold(), each.reference.casefold())
            for name in names
            if name
        ):
            continue
        if each.expires < today:
            return Reason(
                reason.rule,
                reason.outcome,
                f"{reason.text}; an exception of {each.owner} ended on {each.expires}",
            )
        return Reason(
            reason.rule,
            Outcome.ALLOW,
            f"excepted by {each.owner} until {each.expires}: {each.reason} (else: {reason.text})",
        )
    return reason


def _reasons(
    policy: Policy, answer: Answer, today: datetime.date, deployed: Deployed
) -> Iterator[Reason]:
    yield _layer(policy.layers, answer)
    # A licence that a file states binds also where nobody knows what the file is.
    licensed = answer.governing_document.kind is GoverningKind.LICENCE
    if licensed or answer.layer in (Layer.WEIGHTS.value, Layer.COMMUNITY.value):
        yield _licence(policy.licences, answer)
    if answer.conflicts:
        yield Reason(Rule.CONFLICT, policy.licences.conflict, answer.conflicts[0])
    if answer.layer == Layer.STUDIO.value:
        yield from _api(policy.api, answer)
    region = _region(policy.regions, answer, deployed)
    if region is not None:
        yield region
    if policy.certificate.minimum:
        yield _certificate(policy.certificate, deployed)
    if policy.age.maximum_days is not None:
        yield _age(policy.age, policy.age.maximum_days, answer, today)
    yield _status(policy.evidence, answer)


def _layer(rule: Layers, answer: Answer) -> Reason:
    if answer.layer == UNKNOWN:
        return Reason(Rule.LAYER, rule.unknown, f"the layer is not known: {answer.why}")
    if Layer(answer.layer) in rule.allow:
        return Reason(Rule.LAYER, Outcome.ALLOW, f"layer {answer.layer} is allowed")
    allowed = ", ".join(each.value for each in rule.allow) or "none"
    return Reason(Rule.LAYER, Outcome.DENY, f"layer {answer.layer} is not among: {allowed}")


def _licence(rule: Licences, answer: Answer) -> Reason:
    found = answer.governing_document
    if found.kind is not GoverningKind.LICENCE or found.id == UNKNOWN:
        return Reason(Rule.LICENCE, rule.unknown, "the licence is not known")
    known = licences.by_id(found.id)
    folded = found.id.casefold()
    if folded in _folded(rule.deny):
        return Reason(Rule.LICENCE, Outcome.DENY, f"licence {found.id} is denied")
    if folded in _folded(rule.allow):
        return Reason(Rule.LICENCE, Outcome.ALLOW, f"licence {found.id} is allowed")
    if rule.categories:
        category = known.category if known is not None else licences.Category.UNKNOWN
        names = ", ".join(each.value for each in rule.categories)
        if category in rule.categories:
            return Reason(Rule.LICENCE, Outcome.ALLOW, f"licence {found.id} is {category.value}")
        return Reason(
            Rule.LICENCE,
            rule.unknown if category is licences.Category.UNKNOWN else Outcome.DENY,
            f"licence {found.id} is {category.value}, not {names}",
        )
    if rule.allow:
        allowed = ", ".join(rule.allow)
        return Reason(Rule.LICENCE, Outcome.DENY, f"licence {found.id} is not among: {allowed}")
    return Reason(Rule.LICENCE, Outcome.ALLOW, f"licence {found.id} is not denied")


def _api(rule: Api, answer: Answer) -> Iterator[Reason]:
    if rule.operators:
        if answer.operator == UNKNOWN:
            yield Reason(Rule.OPERATOR, rule.unknown, "the operator is not known")
        elif answer.operator.casefold() in _folded(rule.operators):
            yield Reason(Rule.OPERATOR, Outcome.ALLOW, f"operator {answer.operator} is allowed")
        else:
            yield Reason(
                Rule.OPERATOR,
                Outcome.DENY,
                f"operator {answer.operator} is not among: {', '.join(rule.operators)}",
            )
    if rule.terms:
        terms = answer.governing_document.id
        if terms == UNKNOWN:
            yield Reason(Rule.TERMS, rule.unknown, "the API's terms are not known")
        elif terms.casefold() in _folded(rule.terms):
            yield Reason(Rule.TERMS, Outcome.ALLOW, f"terms {terms} are allowed")
        else:
            yield Reason(
                Rule.TERMS, Outcome.DENY, f"terms {terms} are not among: {', '.join(rule.terms)}"
            )
    if answer.state in ("gone", "retiring"):
        when = f" since {answer.retired}" if answer.retired and answer.state == "gone" else ""
        outcome = rule.retired if answer.state == "gone" else Outcome.WARN
        yield Reason(Rule.RETIRED, outcome, f"{answer.release} is {answer.state}{when}")


def _region(rule: Regions, answer: Answer, deployed: Deployed) -> Reason | None:
    if not rule.allow:
        return None
    region = deployed.region or answer.region
    if region is None:
        if answer.layer != Layer.STUDIO.value:
            return None
        return Reason(Rule.REGION, rule.unknown, "the region of the API is not known")
    if region.casefold() in _folded(rule.allow):
        return Reason(Rule.REGION, Outcome.ALLOW, f"region {region} is allowed")
    return Reason(
        Rule.REGION, Outcome.DENY, f"region {region} is not among: {', '.join(rule.allow)}"
    )


def _certificate(rule: Certificate, deployed: Deployed) -> Reason:
    if deployed.certificate is None:
        return Reason(
            Rule.CERTIFICATE, rule.missing, f"no certificate; {rule.minimum} is the least"
        )
    reached = rule.levels.index(deployed.certificate) if deployed.certificate in rule.levels else -1
    enough = reached >= rule.levels.index(rule.minimum)
    return Reason(
        Rule.CERTIFICATE,
        Outcome.ALLOW if enough else Outcome.DENY,
        f"certificate {deployed.certificate}; {rule.minimum} is the least",
    )


def _age(rule: Age, maximum_days: int, answer: Answer, today: datetime.date) -> Reason:
    if answer.released is None:
        return Reason(Rule.AGE, rule.unknown, "the date of its release is not known")
    days = (today - answer.released).days
    text = f"released {answer.released}, {days} days ago; {maximum_days} is the most"
    return Reason(Rule.AGE, Outcome.ALLOW if days <= maximum_days else rule.outcome, text)


def _status(rule: Evidence, answer: Answer) -> Reason:
    order = (Status.UNKNOWN, Status.REPORTED, Status.VERIFIED)
    enough = order.index(answer.status) >= order.index(rule.minimum)
    return Reason(
        Rule.STATUS,
        Outcome.ALLOW if enough else rule.outcome,
        f"the identification is {answer.status.value}; {rule.minimum.value} is the least",
    )


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(each.casefold() for each in names)


# --- the file ---


def load_policy(path: Path) -> Policy:
    """Read the policy file at `path`; raises PolicyError."""
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise PolicyError(f"{path}: more than {_FILE_BYTES_MAX} bytes: not a policy file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}; give a policy file (TOML)") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not UTF-8 text: {error}") from error
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str = "policy") -> Policy:
    """Read a policy from TOML; raises PolicyError that names the field and what it may hold."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{name}: not valid TOML: {error}") from error
    if "version" not in document:
        raise PolicyError(f"{name}: version: missing; write `version = {_VERSION}` at the top")
    try:
        policy = msgspec.convert(document, Policy)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{name}: {_explain(str(error), document, text)}") from error
    problem = _problem(policy)
    if problem:
        raise PolicyError(f"{name}: {problem}")
    return policy


def _problem(policy: Policy) -> str:
    if policy.version != _VERSION:
        return f"version: {policy.version} is not known; this program reads {_VERSION}"
    rule = policy.certificate
    if rule.minimum and rule.minimum not in rule.levels:
        return f"certificate.minimum: {rule.minimum!r} is not among levels {', '.join(rule.levels)}"
    if policy.age.maximum_days is not None and policy.age.maximum_days <= 0:
        return f"age.maximum_days: {policy.age.maximum_days} is not a number of days over 0"
    for field in ("allow", "deny"):
        for licence in getattr(policy.licences, field):
            if licences.by_id(licence) is None and not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
                return f"licences.{field}: {licence!r} is no licence id (SPDX or LicenseRef-…)"
    for number, each in enumerate(policy.exception):
        place = f"exception {number + 1} ({each.reference!r})"
        if not each.owner.strip() or not each.reason.strip():
            return f"{place}: owner and reason must say who answers for it and why"
        if not each.rules:
            return f"{place}: rules: name at least one of {_names(Rule)}"
        if each.reference.strip("*?/ ") == "":
            return f"{place}: reference: names everything; write a narrower policy instead"
    return ""


def too_long(policy: Policy, today: datetime.date) -> tuple[str, ...]:
    """Exceptions that have ended or lie more than a year ahead, in words, for a review."""
    return tuple(
        f"exception for {each.reference} by {each.owner}: "
        + ("ended on" if each.expires < today else "runs until")
        + f" {each.expires}"
        for each in policy.exception
        if each.expires < today or (each.expires - today).days > _EXCEPTION_DAYS_MAX
    )


def _explain(error: str, document: dict[str, object], text: str) -> str:
    """msgspec's message as field, value and way out."""
    message, _, path = error.partition(" - at `$.")
    field = path.rstrip("`")
    if match := re.search(r"unknown field `(\w+)`", message):
        wrong = match[1]
        known = _fields(field)
        close = difflib.get_close_matches(wrong, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        place = f"{field}.{wrong}" if field else wrong
        return f"{place}: no such field{_line(wrong, text)}; {hint}"
    if match := re.search(r"Invalid enum value '(.+)'", message):
        wrong = match[1]
        known = list(_values(field))
        close = difflib.get_close_matches(wrong, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return f"{field}: {wrong!r} is not known{_line(wrong, text)}; {hint}"
    if match := re.search(r"missing required field `(\w+)`", message):
        return f"{field or 'the file'}: {match[1]} is missing"
    return f"{field}: {message}" if field else message


def _line(word: str, text: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line):
            return f" (line {number})"
    return ""


def _fields(path: str) -> list[str]:
    structs: dict[str, type[msgspec.Struct]] = {
        "": Policy,
        "layers": Layers,
        "licences": Licences,
        "api": Api,
        "regions": Regions,
        "certificate": Certificate,
        "age": Age,
        "evidence": Evidence,
        "exception": Exemption,
    }
    struct = structs.get(re.sub(r"\[.*", "", path), Policy)
    return [each.name for each in msgspec.structs.fields(struct)]


def _values(path: str) -> Iterator[str]:
    if path.startswith("layers.allow"):
        yield from (each.value for each in Layer)
    elif path.startswith("licences.categories"):
        yield from (each.value for each in licences.Category)
    elif path.startswith("evidence.minimum"):
        yield from (each.value for each in Status)
    elif ".rules" in path:
        yield from (each.value for each in Rule)
    else:
        yield from (each.value for each in Outcome)


def _names(kind: type[enum.Enum]) -> str:
    return ", ".join(str(each.value) for each in kind)

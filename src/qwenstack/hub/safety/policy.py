"""What follows from a finding: the rules are data (rules.toml), and an operator may replace any."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.hub.safety.findings import Action, Finding, Scan, Verdict

_VERDICTS: Final[tuple[Verdict, ...]] = ("clean", "suspicious", "refused")
_ACTIONS: Final[tuple[Action, ...]] = ("publish", "quarantine", "refuse")


class PolicyError(ValueError):
    """An operator's rules file that is none; the message names the file and the value."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a finding of one kind means, and what whoever pushed can do about it."""

    verdict: Verdict
    remedy: str
    action: Action | None = None


class _RuleChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verdict: Verdict | None = None
    remedy: str | None = None
    action: Action | None = None


class _Changes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    actions: dict[Verdict, Action] = {}
    rules: dict[str, _RuleChange] = {}


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules by name, and what a verdict does to a push."""

    actions: dict[Verdict, Action]
    rules: dict[str, Rule]

    def judge(self, findings: Iterable[Finding]) -> Scan:
        """The scan that these findings make."""
        found = tuple(findings)
        worst = max((_VERDICTS.index(self.rules[f.rule].verdict) for f in found), default=0)
        return Scan(_VERDICTS[worst], found)

    def action(self, finding: Finding) -> Action:
        """What this finding does to a push."""
        rule = self.rules[finding.rule]
        return rule.action or self.actions[rule.verdict]

    def action_on(self, scan: Scan) -> Action:
        """What the scan does to a push: the gravest action of its findings."""
        worst = max((_ACTIONS.index(self.action(finding)) for finding in scan.findings), default=0)
        return _ACTIONS[worst]

    def told(self, path: str, finding: Finding) -> str:
        """A sentence for whoever pushed `path`: what was found, where, and the way out."""
        place = f"{path} ({finding.place})" if finding.place else path
        return f"{place}: {finding.message} [{finding.rule}]; {self.rules[finding.rule].remedy}"


@functools.cache
def default_policy() -> Policy:
    """The rules that come with the program."""
    document = files("qwenstack.hub.safety").joinpath("rules.toml").read_bytes()
    return msgspec.toml.decode(document, type=Policy)


RULES_NAME: Final = "rules.toml"
"""The operator's own rules, in the hub's folder."""


def policy_in(folder: Path) -> Policy:
    """The rules of the hub in this folder: the default ones, changed by its rules.toml if any.

    Raises PolicyError, OSError.
    """
    path = folder / RULES_NAME
    return load_policy(path) if path.exists() else default_policy()


def load_policy(path: Path) -> Policy:
    """The default rules with what the file at `path` replaces; raises PolicyError, OSError."""
    policy = default_policy()
    try:
        changes = msgspec.toml.decode(path.read_bytes(), type=_Changes)
    except (msgspec.MsgspecError, ValueError) as error:
        raise PolicyError(f"{path} is no rules file: {error}") from error
    rules = dict(policy.rules)
    for name, change in changes.rules.items():
        if name not in rules:
            raise PolicyError(f"{path} names the rule {name!r}; known are {', '.join(rules)}")
        given = {field: value for field, value in msgspec.structs.asdict(change).items() if value}
        rules[name] = msgspec.structs.replace(rules[name], **given)
    return Policy({**policy.actions, **changes.actions}, rules)

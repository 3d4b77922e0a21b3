"""Whether bytes are a pickle, and what it would call. No pickle is ever loaded here."""

from __future__ import annotations

import io
import pickletools
from typing import Final

import msgspec

from qwenstack.hub.safety.confined import ConfinedError, Limits, run_confined

PREFIX_BYTES: Final = 1024 * 1024
"""How much of a pickle is taken apart; what it calls first is in there."""

_OPCODES_MAX: Final = 20_000
_IMPORTS: Final = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_CALLS: Final = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_SHOWN_MAX: Final = 20


class PickleContents(msgspec.Struct, frozen=True):
    """The names that a pickle imports, as `module name`, sorted by how bad picklescan holds them.

    `complete` is false where it could not be taken apart to its end.
    """

    dangerous: tuple[str, ...]
    unknown: tuple[str, ...]
    known: tuple[str, ...]
    complete: bool


class PickleRequest(msgspec.Struct, frozen=True):
    """What the child is given: the beginning of a pickle."""

    data: bytes


def looks_like_pickle(head: bytes) -> bool:
    """Whether `pickle.load` would run what begins with `head`.

    From protocol 2 on a pickle names its protocol. Before, it is any text whose characters happen
    to be opcodes: it counts as one when its stack holds, and it imports a name and calls it (or is
    opcodes as far as can be seen). A pickle that only lists numbers is taken for the text it is.
    """
    framed = head[:1] == b"\x80" and len(head) > 2 and head[1] <= 5
    stack = [0]  # items above each mark
    imported = False
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            count += 1
            if not _step(opcode, stack):
                return False
            imported = imported or opcode.name in _IMPORTS
            if (framed and count == 4) or (imported and opcode.name in _CALLS):
                return True
            if count == _OPCODES_MAX:
                return True
            if opcode.name == "STOP":
                return framed
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeError):
        # Broken here, but loading has run what stood before.
        return framed and count > 1
    return False


def _step(opcode: pickletools.OpcodeInfo, stack: list[int]) -> bool:
    """Follow one opcode on the stack's depth; false where the real machine would stop."""
    if opcode.name == "MARK":
        stack.append(0)
        return True
    needed = [item.name for item in opcode.stack_before]
    if "mark" in needed:
        if len(stack) < 2:
            return False
        stack.pop()
        needed = needed[: needed.index("mark")]
    elif opcode.name == "POP" and not stack[-1] and len(stack) > 1:
        stack.pop()
        return True
    if stack[-1] < len(needed):
        return False
    stack[-1] += len(opcode.stack_after) - len(needed)
    return True


def contents(data: bytes) -> PickleContents:
    """What the pickle that begins with `data` imports, by picklescan's list, in a confined child.

    One that can't be taken apart within the limits is returned as incomplete.
    """
    try:
        return run_confined(
            "qwenstack.hub.safety.pickle_child",
            PickleRequest(data[:PREFIX_BYTES]),
            PickleContents,
            Limits(seconds=10, memory_bytes=1024**3),
        )
    except ConfinedError:
        return PickleContents((), (), (), complete=False)


def describe(found: PickleContents) -> str:
    """What it imports, in words, the worst first."""
    parts = []
    if found.dangerous:
        parts.append(f"it imports what runs commands: {_listed(found.dangerous)}")
    if found.unknown:
        parts.append(f"it imports {_listed(found.unknown)}")
    if not parts:
        parts.append("it imports only tensors' own names" if found.known else "it imports nothing")
    if not found.complete:
        parts.append("it was not taken apart to its end")
    return "; ".join(parts)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else ""
    return ", ".join(name.replace(" ", ".") for name in names[:_SHOWN_MAX]) + more

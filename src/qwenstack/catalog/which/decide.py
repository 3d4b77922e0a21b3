"""`which`: every recogniser reads the reference, and one function decides between the readings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import (
    digest,
    endpoint,
    hosted,
    hub,
    image,
    ollama,
    provider,
    release_name,
)
from qwenstack.catalog.which.answer import UNKNOWN, Answer, GoverningDocument, Likeness
from qwenstack.catalog.which.compose import compose
from qwenstack.catalog.which.index import Index, index
from qwenstack.catalog.which.reading import Kind, Reading, Setting, Sureness
from qwenstack.catalog.which.spelling import HIDDEN, foreign_letters, plain, visible
from qwenstack.core.layers import Layer

REFERENCE_CHARACTERS_MAX: Final = 65_536
"""Of a longer reference, the first part is read, and the answer says so."""

_SHOWN_CHARACTERS_MAX: Final = 200
_LOOK_ALIKE_CHARACTERS_MAX: Final = 2_000
_SNIPPET: Final = re.compile(r"[\n={}()\[\]\"'`;,]|:\s|\s(?:is|from|with)\s")
_ADDRESS: Final = re.compile(r"https?://[^\s\"'`]+")
_HIDDEN: Final = re.compile(f"[{HIDDEN}]")
# Left from copying; but what turns the direction of writing around is there to deceive.
_HIDDEN_AT_ENDS: Final = re.compile(
    rf"\A(?:(?![\u202a-\u202e\u2066-\u2069])[{HIDDEN}\s])+"
    rf"|(?:(?![\u202a-\u202e\u2066-\u2069])[{HIDDEN}\s])+\Z"
)


def which(
    reference: str | Path,
    *,
    catalogue: Index | None = None,
    setting: Setting = Setting.ANY,
    files: bool = True,
) -> Answer:
    """Say what `reference` is: layer, release, operator, governing document, and how we know.

    A path that exists is opened (headers and small text files only); everything else is read as
    text, against the catalogue, without a network. Never raises for a reference, however odd: what
    can't be read is in the answer's `problems`. `setting` is what is known of who resolves it.
    Without `files` no path is opened: for names that somebody else wrote.
    """
    found = catalogue or index()
    text = str(reference)
    problems: list[str] = []
    if len(text) > REFERENCE_CHARACTERS_MAX:
        problems.append(
            f"the reference has {len(text):,} characters; only the first "
            f"{REFERENCE_CHARACTERS_MAX:,} were read"
        )
        text = text[:REFERENCE_CHARACTERS_MAX]
    bare = _HIDDEN_AT_ENDS.sub("", text)
    inside = _HIDDEN.search(bare)
    hidden = inside or _HIDDEN.search(text)
    if hidden:
        at = text.index(hidden[0]) + 1
        problems.append(
            f"character {at} is U+{ord(hidden[0]):04X}, which doesn't show"
            + ("" if inside else "; it was left out")
        )
    text = bare
    answer = _of_path(reference, text, found, problems) if files else None
    if answer is None and _SNIPPET.search(text) and not _is_one_thing(text, found):
        from qwenstack.catalog.which.snippet import read as read_snippet

        answer = read_snippet(text, found, setting)
    if answer is None:
        answer = look_alike(text, found, setting)
    if answer is None and inside and not _SNIPPET.search(text):
        answer = unknown(shorten(text), plain(text), found, "it holds characters that don't show")
    if answer is None:
        answer = _of_text(text, found, setting)
    answer = _with_problems(answer, tuple(problems))
    return answer if _is_unicode(text) else _written(answer)


def look_alike(text: str, found: Index, setting: Setting = Setting.ANY) -> Answer | None:
    """The answer for a text that only looks like the name of something; None where it does not.

    A program compares names character by character: what such a name leads to is another's, if
    anything.
    """
    latin = plain(text)
    if latin == text or not latin.isascii() or len(text) > _LOOK_ALIKE_CHARACTERS_MAX:
        return None
    meant = _of_text(latin, found, setting)
    if not meant.identified and meant.publisher == UNKNOWN:
        return None
    which_ones = foreign_letters(text)
    return Answer(
        reference=shorten(text),
        kind=Kind.LOOK_ALIKE.value,
        layer=UNKNOWN,
        release=None,
        operator=UNKNOWN,
        governing_document=GoverningDocument(),
        lookalikes=(
            Likeness(
                reference=latin,
                kind=meant.kind,
                layer=meant.layer,
                reason="the name that it looks like, and is not",
            ),
        ),
        why=f"it only looks like {latin}: {which_ones}",
        conflicts=(f"looks like {latin}, and is another name: {which_ones}",),
        suggestions=(latin,),
    )


def readings(text: str, found: Index, setting: Setting) -> Iterator[Reading]:
    """Every way to read `text` that some recogniser knows."""
    if _names_by_command(text, found):
        from qwenstack.catalog.which import command

        yield from command.read(text, found)
        return
    yield from digest.read(text, found)
    yield from release_name.read_negative(text, found)
    yield from hub.read_url(text, found)
    yield from hub.read_id(text, found)
    yield from provider.read(text, found)
    yield from hosted.read(text, found)
    yield from ollama.read(text, found, certain=setting is Setting.OLLAMA)
    yield from endpoint.read(text, found)
    yield from image.read(text)
    yield from release_name.read_file_name(text, found)
    yield from release_name.read(text, found)
    yield from release_name.read_organisation(text, found)


def _is_one_thing(text: str, found: Index) -> bool:
    """Whether `text` is a command or a hub's address, for all the signs of a snippet in it."""
    if _ADDRESS.fullmatch(text):
        return next(hub.read_url(text, found), None) is not None
    return _names_by_command(text, found)


def _names_by_command(text: str, found: Index) -> bool:
    """Whether `text` is a command that names a model as its argument."""
    if " " not in text:
        return False
    from qwenstack.catalog.which import command

    return next(command.read(text, found), None) is not None


def choose(found: list[Reading], setting: Setting) -> Reading | None:
    """The reading to take: the surest, and between equals the one that the setting speaks for.

    What the text says wins over where it stands; what the catalogue lists wins over a form.
    """
    return max(found, key=lambda each: (_settled(each, setting), each.sure), default=None)


_SPOKEN_FOR: Final = {
    Setting.API: (Kind.HOSTED_MODEL, Kind.API_URL),
    Setting.OLLAMA: (Kind.OLLAMA_TAG,),
    Setting.WEIGHTS: (Kind.HUB_ID, Kind.HUB_URL, Kind.RELEASE_NAME),
}


def _settled(reading: Reading, setting: Setting) -> bool:
    return reading.sure >= Sureness.SHAPED and reading.kind in _SPOKEN_FOR.get(setting, ())


_ONLY_POSSIBLE: Final = "nothing more than its form says what it could be"


def _of_text(text: str, found: Index, setting: Setting) -> Answer:
    all_readings = list(readings(text, found, setting))
    taken = choose(all_readings, setting)
    shown = shorten(text)
    if taken is None:
        return unknown(shown, text, found)
    if taken.sure is Sureness.POSSIBLE:
        # A form alone is no answer: it is shown as what the name could be.
        answer = compose(
            shown,
            Reading(kind=Kind.UNKNOWN, sure=taken.sure, why=_ONLY_POSSIBLE, subject=text),
            all_readings,
            found,
        )
        return _suggesting(answer, text, found)
    others = [each for each in all_readings if each is not taken]
    read = _doubted(taken, others, setting)
    # What was taken is no look-alike of itself, unless it is in doubt.
    answer = compose(shown, read, all_readings if read.layer is None else others, found)
    if answer.status.value == UNKNOWN and not answer.suggestions and taken.sure < Sureness.LISTED:
        return _suggesting(answer, text, found)
    return answer


def _doubted(taken: Reading, others: list[Reading], setting: Setting) -> Reading:
    """`taken`, unless its name is not written exactly so and can stand on another layer, too.

    Where the setting speaks for it, the doubt is only said; else the layer is not known.
    """
    rivals = [
        each
        for each in others
        if taken.sure < Sureness.EXACT
        and each.sure >= Sureness.SHAPED
        and each.layer not in (None, taken.layer)
    ]
    if not rivals or taken.layer is None:
        return taken
    import msgspec

    texts = tuple(
        f"it can also be read as {each.kind.value} {each.subject}, layer "
        f"{each.layer.value if each.layer else UNKNOWN}: {each.why}"
        for each in rivals
    )
    if _settled(taken, setting):
        return msgspec.structs.replace(
            taken, status=Status.REPORTED, conflicts=(*taken.conflicts, *texts)
        )
    return Reading(
        kind=taken.kind,
        sure=Sureness.POSSIBLE,
        why="the name fits two layers, and nothing says which is meant",
        subject=taken.subject,
        status=Status.UNKNOWN,
        candidates=tuple(each.repo.id for each in (taken, *rivals) if each.repo is not None),
        conflicts=(f"{taken.layer.value}: {taken.why}", *texts),
    )


def unknown(shown: str, text: str, found: Index, why: str = "") -> Answer:
    """The answer for a reference to nothing that we know."""
    answer = Answer(
        reference=shown,
        kind=Kind.UNKNOWN.value,
        layer=UNKNOWN,
        release=None,
        operator=UNKNOWN,
        governing_document=GoverningDocument(),
        why=why or "no recogniser knows this form, and the catalogue lists no such name",
    )
    return _suggesting(answer, text, found)


def shorten(text: str) -> str:
    """A reference as it is shown: on one line, and not longer than a screen's width or two."""
    line = visible(" ".join(text.split()))
    if len(line) <= _SHOWN_CHARACTERS_MAX:
        return line
    return f"{line[:_SHOWN_CHARACTERS_MAX]}… ({len(text):,} characters)"


def _suggesting(answer: Answer, text: str, found: Index) -> Answer:
    import msgspec

    latin = plain(text)
    suggestions = list(found.suggest(latin))
    if latin != text and _of_text(latin, found, Setting.ANY).identified:
        suggestions.insert(0, latin)
    name = latin.rpartition("/")[2]
    if "/" in latin and not suggestions:
        suggestions += [each for each in found.suggest(name) if each.partition("/")[2] or True]
    conflicts = answer.conflicts
    if latin != text and not conflicts:
        conflicts = (f"written with letters that only look Latin: {foreign_letters(text)}",)
    return msgspec.structs.replace(
        answer,
        suggestions=tuple(dict.fromkeys(each for each in suggestions if each != text))[:5],
        conflicts=conflicts,
    )


def _of_path(reference: str | Path, text: str, found: Index, problems: list[str]) -> Answer | None:
    """The answer from what is in the file or folder, if `reference` is a path that exists."""
    if not isinstance(reference, Path) and not _may_be_path(text):
        return None
    from qwenstack.catalog.which.paths import read_path

    return read_path(Path(text), found, problems)


def _may_be_path(text: str) -> bool:
    if "\n" in text or len(text) > 4096 or "://" in text:
        return False
    return (
        "/" in text
        or text.startswith((".", "~"))
        or text.endswith((".gguf", ".safetensors", ".json"))
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a path's bytes that are no UTF-8
        return False
    return True


def _written(answer: Answer) -> Answer:
    """The answer as it can be written down, with what is no Unicode as `\\udcff`."""
    import msgspec

    def plain_text(value: object) -> object:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, dict):
            return {key: plain_text(each) for key, each in value.items()}
        return [plain_text(each) for each in value] if isinstance(value, list | tuple) else value

    return msgspec.convert(plain_text(msgspec.to_builtins(answer)), Answer)


def _with_problems(answer: Answer, problems: tuple[str, ...]) -> Answer:
    if not problems:
        return answer
    import msgspec

    return msgspec.structs.replace(answer, problems=(*problems, *answer.problems))


__all__ = ["Layer", "choose", "look_alike", "readings", "shorten", "unknown", "which"]

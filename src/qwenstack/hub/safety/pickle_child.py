"""Run in a confined child: takes a pickle apart with picklescan."""

from __future__ import annotations

import io
import logging

from picklescan.scanner import SafetyLevel, ScanResult, scan_bytes

from qwenstack.hub.safety.confinement import answer_with
from qwenstack.hub.safety.pickles import PREFIX_BYTES, PickleContents, PickleRequest


def take_apart(request: PickleRequest) -> PickleContents:
    """The names that it imports. The scanner disassembles; it loads nothing."""
    logging.disable(logging.CRITICAL)
    found: ScanResult = scan_bytes(io.BytesIO(request.data), "pickle", ".pkl")

    def of(level: SafetyLevel) -> tuple[str, ...]:
        return tuple(sorted({f"{g.module} {g.name}" for g in found.globals if g.safety is level}))

    return PickleContents(
        of(SafetyLevel.Dangerous),
        of(SafetyLevel.Suspicious),
        of(SafetyLevel.Innocuous),
        complete=not found.scan_err and len(request.data) < PREFIX_BYTES,
    )


if __name__ == "__main__":
    answer_with(take_apart, PickleRequest)

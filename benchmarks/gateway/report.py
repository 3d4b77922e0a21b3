"""Make the table of a run, and put it into the documentation between two markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.gateway.results import Results, Sample

BEGIN = "<!-- gateway benchmark: begin (written by the driver) -->"
END = "<!-- gateway benchmark: end -->"


def publish(results: Results, document: Path | None) -> None:
    """Print the report; with `document`, replace its section there (or append it)."""
    text = render(results)
    print(text)
    if document is None:
        return
    old = document.read_text() if document.exists() else "# Benchmarks\n"
    section = f"{BEGIN}\n{text}\n{END}\n"
    if BEGIN in old and END in old:
        head, rest = old.split(BEGIN, 1)
        new = head + section + rest.split(END, 1)[1].lstrip("\n")
    else:
        new = f"{old.rstrip()}\n\n{section}"
    document.write_text(new)


def render(results: Results) -> str:
    """The report as Markdown."""
    parts = [
        "## Gateways",
        f"Measured {results.date} on {results.machine}. Made by:",
        f"```\n{results.command} --docs docs/benchmarks.md\n```",
        "Medians over the rounds of one run, lowest and highest in brackets; every answer was "
        "checked to be complete. `direct` is the client on the upstream itself: the baseline, and "
        "the ceiling of the harness.",
    ]
    for setup in results.setups:
        parts.append(
            f"### Set-up {setup.name}: gateway on CPU {_list(setup.peer_cpus)}, "
            f"client and upstream on CPU {_list(setup.load_cpus)}"
        )
        parts += _setup_tables(results, setup.name)
    parts += _aims(results)
    parts += _kills(results)
    parts.append("### How each was set up")
    parts.append(
        "\n".join(
            f"- **{name}**: {state.setup}"
            + (f". Not measured: {state.missing}" * bool(state.missing))
            for name, state in results.peers.items()
        )
    )
    if results.notes:
        parts.append("### Notes of the run")
        parts.append("\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts)


def _setup_tables(results: Results, setup: str) -> list[str]:
    samples = [s for s in results.samples if s.setup == setup]
    tables = []
    titles = {
        "stream": "Streamed completions, answers a second (no delay between chunks)",
        "whole": "Completions that are not streamed, answers a second",
    }
    for mode, title in titles.items():
        counts = sorted({s.clients for s in samples if s.mode == mode})
        heads = [f"{n} client{'s' * (n > 1)}" for n in counts]
        columns: list[Callable[[str], str]] = [
            _spread(samples, mode, n, lambda s: s.load.rate, "{:,.0f}") for n in counts
        ]
        tables.append(_table(results, samples, title, heads, columns))
    counts = sorted({s.clients for s in samples if s.mode == "stream"})
    heads, columns = [], []
    for n in counts:
        heads += [f"p50, {n}", f"p99, {n}", f"first, {n}"]
        columns += [
            _added(samples, "stream", n, lambda s: s.load.latency_us.p50),
            _added(samples, "stream", n, lambda s: s.load.latency_us.p99),
            _added(samples, "stream", n, lambda s: s.load.first_us.p50),
        ]
    title = "Added to the direct answer, ms, streamed, by clients: p50, p99, time to first token"
    tables.append(_table(results, samples, title, heads, columns))
    counts = sorted({s.clients for s in samples if s.mode == "paced"})
    if counts:
        heads, columns = [], []
        for n in counts:
            heads += [f"chunks/s, {n}", f"first +ms p50, {n}", f"first +ms p99, {n}"]
            columns += [
                _spread(samples, "paced", n, lambda s: s.load.event_rate, "{:,.0f}"),
                _added(samples, "paced", n, lambda s: s.load.first_us.p50),
                _added(samples, "paced", n, lambda s: s.load.first_us.p99),
            ]
        title = "A chunk each 5 ms: streamed chunks a second, and time to first token over direct"
        tables.append(_table(results, samples, title, heads, columns))
    most = max((s.clients for s in samples if s.mode == "stream"), default=0)
    tables.append(
        _table(
            results,
            samples,
            "Memory (proportional set size, MiB, database included) and chunks a second unpaced",
            ["MiB", f"chunks/s, {most} clients", "answers not complete"],
            [
                lambda name: _peak_memory(samples, name),
                _spread(samples, "stream", most, lambda s: s.load.event_rate, "{:,.0f}"),
                lambda name: str(sum(s.load.bad for s in samples if s.peer == name)),
            ],
        )
    )
    return tables


def _table(
    results: Results,
    samples: list[Sample],
    title: str,
    heads: list[str],
    columns: list[Callable[[str], str]],
) -> str:
    lines = [f"**{title}**", "", f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, state in results.peers.items():
        if state.missing or not any(s.peer == name for s in samples):
            lines.append(f"| {name} | not measured |{' |' * (len(heads) - 1)}")
        else:
            lines.append(f"| {name} | {' | '.join(column(name) for column in columns)} |")
    return "\n".join(lines)


def _values(
    samples: list[Sample], peer: str, mode: str, clients: int, value: Callable[[Sample], float]
) -> dict[int, float]:
    return {
        s.round: value(s)
        for s in samples
        if (s.peer, s.mode, s.clients) == (peer, mode, clients) and s.load.good
    }


def _spread(
    samples: list[Sample], mode: str, clients: int, value: Callable[[Sample], float], form: str
) -> Callable[[str], str]:
    def cell(peer: str) -> str:
        values = list(_values(samples, peer, mode, clients, value).values())
        if not values:
            return "–"
        text = form.format(median(values))
        if len(values) > 1:
            text += f" ({form.format(min(values))}–{form.format(max(values))})"
        return text

    return cell


def _added(
    samples: list[Sample], mode: str, clients: int, value: Callable[[Sample], float]
) -> Callable[[str], str]:
    def cell(peer: str) -> str:
        mine = _values(samples, peer, mode, clients, value)
        direct = _values(samples, "direct", mode, clients, value)
        added = [mine[n] - direct[n] for n in mine if n in direct]
        return f"{median(added) / 1000:.2f}" if added else "–"

    return cell


def _peak_memory(samples: list[Sample], peer: str) -> str:
    peak = max((s.memory_bytes for s in samples if s.peer == peer), default=0)
    return f"{peak / 2**20:.0f}" if peak else "–"


def _aims(results: Results) -> list[str]:
    setup = results.setups[0].name if results.setups else ""
    samples = [s for s in results.samples if s.setup == setup]

    def rate(peer: str, mode: str) -> float | None:
        values = list(_values(samples, peer, mode, 32, lambda s: s.load.rate).values())
        return median(values) if values else None

    lines = [
        f"### Aims (set-up {setup}, 32 clients)",
        "",
        "| aim | streamed | not streamed |",
        "|---|---:|---:|",
    ]
    for peer, factor in (("litellm", 20.0), ("portkey", 1.0), ("vllm-router", 0.5)):
        cells = []
        for mode in ("stream", "whole"):
            ours, theirs = rate("qwenstack", mode), rate(peer, mode)
            if theirs is None:
                cells.append(f"{peer} not measured")
            elif ours is None:
                cells.append(f"needs {factor * theirs:,.0f}/s; QwenStack not measured")
            else:
                met = "met" if ours >= factor * theirs else "missed"
                cells.append(f"{ours / theirs:.2f} × ({met})")
        lines.append(f"| at least {factor:g} × {peer} | {' | '.join(cells)} |")
    serial = []
    for mode in ("stream", "whole"):
        text = _added(samples, mode, 1, lambda s: s.load.latency_us.p50)("qwenstack")
        known = text != "–"
        serial.append(f"{text} ms ({'met' if float(text) < 0.5 else 'missed'})" if known else text)
    lines.append(f"| added p50 under 0.5 ms, one client | {' | '.join(serial)} |")
    return ["\n".join(lines)]


def _kills(results: Results) -> list[str]:
    if not results.kills:
        return []
    lines = [
        "### What a kill -9 loses",
        "",
        "Eight clients complete streamed answers; the gateway's processes get SIGKILL as soon as "
        "the last answer is complete; the gateway is started again on the same data and asked "
        "what it has on record.",
        "",
        "| | answers that clients saw whole | requests on record | lost |",
        "|---|---:|---:|---:|",
    ]
    for peer in dict.fromkeys(kill.peer for kill in results.kills):
        of_peer = [kill for kill in results.kills if kill.peer == peer]
        seen, recorded = sum(k.seen for k in of_peer), sum(k.recorded for k in of_peer)
        share = f"{seen - recorded} ({100 * (seen - recorded) / seen:.0f} %)" if seen else "–"
        times = f" ({len(of_peer)} kills)" if len(of_peer) > 1 else ""
        lines.append(f"| {peer}{times} | {seen} | {recorded} | {share} |")
    return ["\n".join(lines)]


def _list(cpus: tuple[int, ...]) -> str:
    return " and ".join(map(str, cpus))

"""A dossier says what its evidence says, the same each time, and notices when either changes."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from spdx_python_model import v3_0_1 as spdx

from qwenstack.catalog.which import which
from qwenstack.core.evidence import Evidence, Value, matches
from qwenstack.dossier.changes import compare
from qwenstack.dossier.compose import compose
from qwenstack.dossier.document import Document
from qwenstack.dossier.frameworks import NAMES, load_framework
from qwenstack.dossier.gather.identity import by_files
from qwenstack.dossier.render.cyclonedx import cyclonedx
from qwenstack.dossier.render.html import html
from qwenstack.dossier.render.markdown import markdown
from qwenstack.dossier.render.pdf import pdf
from qwenstack.dossier.render.spdx import spdx_json
from qwenstack.dossier.seal import document_json, load_key, problems, public_text, sign
from qwenstack.hub.registry.manifests import Entry


def said(claim: str, value: Value, **fields: object) -> Evidence:
    whole = {
        "subject": "m",
        "source": "config.json",
        "method": "read",
        "observed_at": "2026-11-24",
        **fields,
    }
    return Evidence(claim=claim, value=value, **whole)  # type: ignore[arg-type]


WHOLE = (
    said("identity.layer", "weights"),
    said("identity.publisher", "Qwen"),
    said("identity.released", "2025-04-29"),
    said("governing.kind", "licence"),
    said("governing.id", "Apache-2.0"),
    said("governing.category", "permissive"),
    said("obligation.notice", "Keep the notice."),
    said("weights.release-digest", "a" * 64, method="computed"),
    said("weights.file.config.json", "2 kB", digest="b" * 64),
    said("weights.file.model.safetensors", "16 GB", digest="c" * 64),
    said("weights.architecture", "qwen3"),
    said("weights.lineage.parent", "Qwen/Qwen3-8B-Base"),
    said("weights.lineage.relation", "fine-tune"),
    said("weights.lineage.verdict", "derived"),
    said("evaluation.claimed.mmlu", 0.77),
    said("evaluation.measured.mmlu", 0.75, method="measured"),
    said("card.licence", "apache-2.0"),
    said("card.intended-use", "Chat."),
)
CYCLONEDX = JsonStrictValidator(SchemaVersion.V1_6)
texts = st.text(max_size=40)
claims = st.sampled_from([each.claim for each in WHOLE] + ["card.bias", "identity.conflict.1"])
evidences = st.builds(
    Evidence,
    subject=texts,
    claim=claims,
    value=st.one_of(st.booleans(), st.integers(), texts, st.lists(texts).map(tuple)),
    source=texts,
    method=st.sampled_from(["computed", "measured", "read", "declared"]),
    status=st.sampled_from(["verified", "reported", "unknown"]),
    observed_at=st.sampled_from(["2026-11-24", "2026-11-24T10:00:00Z"]),
    note=texts,
)


def dossier(*more: Evidence) -> Document:
    return compose("Qwen/Qwen3-8B", (*WHOLE, *more))


@given(st.lists(evidences, max_size=8), st.randoms())
def test_the_same_evidence_makes_the_same_bytes_in_any_order(
    evidence: list[Evidence], random: object
) -> None:
    shuffled = list(evidence) * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert document_json(compose("r", evidence)) == document_json(compose("r", shuffled))


@given(st.lists(evidences, max_size=8))
def test_no_line_cites_evidence_that_is_not_there(evidence: list[Evidence]) -> None:
    document = compose("r", evidence)
    known = {each.id for each in document.evidence}
    for section in document.sections:
        for row in section.rows:
            assert set(row.evidence) <= known
            assert len(row.cells) == len(section.columns)
            if row.standing in ("shown", "partly"):
                assert row.evidence


@given(st.lists(evidences, max_size=5))
def test_hostile_text_reaches_no_format_as_markup(evidence: list[Evidence]) -> None:
    evil = said("card.intended-use", "<script>alert(1)</script>|`x`\n# head")
    document = compose("<b>r</b>", [*evidence, evil])
    page = html(document)
    assert "<script" not in page
    assert "<b>r</b>" not in page
    assert "\n# head" not in markdown(document)


@pytest.mark.parametrize(
    ("name", "items"),
    [("nist_ai_rmf", 72), ("nist_ai_600_1", 12), ("eu_ai_act", 26), ("export_control", 6)],
)
def test_the_frameworks_are_whole(name: str, items: int) -> None:
    framework = load_framework(name)
    assert len(framework.items) == items
    assert len({item.id for item in framework.items}) == items
    assert all(bool(item.claims) != item.organisational for item in framework.items)
    if name == "nist_ai_rmf":
        counts = [
            sum(item.id.startswith(function) for item in framework.items)
            for function in ("GOVERN", "MAP", "MEASURE", "MANAGE")
        ]
        assert counts == [19, 18, 22, 13]


def test_the_suggested_actions_are_whole_and_stand_under_their_risks() -> None:
    framework = load_framework("nist_ai_600_1")
    actions = {action.id: action for action in framework.actions}
    # NIST AI 600-1, section 3: 212 actions under 49 subcategories of the AI RMF.
    assert len(actions) == len(framework.actions) == 212
    counts = [sum(name.startswith(start) for name in actions) for start in ("GV", "MP", "MS", "MG")]
    assert counts == [58, 39, 72, 43]
    assert len({name.rpartition("-")[0] for name in actions}) == 49
    for name in actions:  # numbered without gaps
        start, _, number = name.rpartition("-")
        assert number == "001" or f"{start}-{int(number) - 1:03}" in actions
    assert all(bool(action.claims) != action.organisational for action in framework.actions)
    bearing = [sum(n in action.risks for action in framework.actions) for n in range(13)]
    assert bearing == [1, 31, 18, 31, 29, 4, 57, 58, 73, 51, 28, 14, 36]
    assert actions["GV-1.4-002"].risks == (0, 1, 4, 11)


def test_an_action_is_shown_by_evidence_or_a_gap_and_counted_under_its_risks() -> None:
    document = dossier(said("evaluation.measured.toxigen.acc", 0.5, method="measured"))
    rows = {row.label: row for row in document.section("nist-ai-600-1-actions").rows}
    assert rows["MS-2.3-002"].standing == "shown"
    assert rows["MS-2.11-001"].standing == "shown"
    assert rows["MG-3.1-002"].standing == "partly"
    assert rows["MS-2.12-003"].standing == "gap"
    assert rows["GV-2.1-005"].standing == "organisational"
    assert rows["MS-2.12-003"].cells[2] == "Environmental impacts"
    risks = {row.label: row for row in document.section("nist-ai-600-1").rows}
    assert "4 suggested actions: 2 gap, 2 organisational" in risks["GAI-5"].note
    without = {row.label: row for row in dossier().section("nist-ai-600-1-actions").rows}
    assert without["MS-2.11-001"].standing == "gap"


def test_an_item_is_shown_only_where_every_claim_has_evidence() -> None:
    rows = {row.label: row for row in dossier().section("nist-ai-rmf-1.0").rows}
    assert rows["GOVERN 1.1"].standing == "shown"
    assert rows["MAP 4.2"].standing == "gap"
    assert rows["MAP 4.1"].standing == "partly"
    assert rows["GOVERN 3.1"].standing == "organisational"
    assert {*NAMES} == {"nist_ai_rmf", "nist_ai_600_1", "eu_ai_act", "export_control"}


def test_unknown_is_a_gap_and_no_evidence() -> None:
    document = compose("r", [said("governing.id", "", status="unknown")])
    (row,) = [row for row in document.section("licence").rows if row.label == "Document"]
    assert (row.standing, row.cells[0]) == ("gap", "unknown")
    labels = [row.label for row in document.section("risks").rows]
    assert "terms-absent" in labels


def test_a_claimed_result_stands_beside_the_measured_one() -> None:
    (row,) = dossier().section("benchmarks").rows
    why = "not comparable: the claim does not say how many examples were shown"
    assert (row.label, row.cells, row.standing) == ("MMLU", ("0.77", "0.75", why), "shown")


def test_risks_are_owned_by_decision_only() -> None:
    open_ = {row.label: row for row in dossier().section("risks").rows}
    assert open_["not-scanned"].cells[2] == "nobody yet"
    owned = dossier(
        said("risk.owner.not-scanned", "Ada", method="declared"),
        said("risk.due.not-scanned", "2026-12-31", method="declared"),
    )
    row = {row.label: row for row in owned.section("risks").rows}["not-scanned"]
    assert (row.cells[2:], row.standing) == (("Ada", "2026-12-31"), "open")


def test_the_boms_hold_against_the_official_schemas() -> None:
    document = dossier()
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(cyclonedx(document).decode()) is None
    )
    graph = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO(spdx_json(document)), graph)
    assert not graph.missing_ids
    (package,) = graph.foreach_type(spdx.ai_AIPackage)
    assert package.name == "Qwen/Qwen3-8B"
    assert [getattr(each, "key", "") for each in package.ai_metric] == ["mmlu"]
    assert len(list(graph.foreach_type(spdx.software_File))) == 2


def test_the_cyclonedx_bom_is_valid_in_the_version_after_it_as_well() -> None:
    bom = cyclonedx(dossier()).decode()
    assert '"specVersion": "1.6"' in bom
    later = bom.replace('"specVersion": "1.6"', '"specVersion": "1.7"').replace(
        "bom-1.6.schema.json", "bom-1.7.schema.json"
    )
    validator = JsonStrictValidator(SchemaVersion.V1_7)
    assert validator.validate_str(later) is None
    assert validator.validate_str(later.replace('"type"', '"typ"')) is not None


# As published in spdx/spdx-spec for 3.0.1 (Community Specification License 1.0), read 2026-11-24.
SPDX_MODEL = {
    "schema.json": "59f59713c7d73ff0d833f4f468df974a689fc9dd36dc5510f1875ff85d276c54",
    "spdx-model.ttl": "1e6df676d5a4108de90362170b0933da53f929ae8147453cea0dffadb804fae5",
    "spdx-context.jsonld": "c72b0928f094c83e5c127784edb1ebca2af74a104fcacc007c332b23cbc788bd",
}


def spdx_faults(bom: dict[str, object], folder: Path) -> list[str]:
    """What the official schema and SHACL model say, through the official validator's engine."""
    core = pytest.importorskip("spdx3_validate.core")
    versions = pytest.importorskip("spdx3_validate.spdx_versions")
    rdflib = pytest.importorskip("rdflib")
    version = versions.find_version(bom["@context"])
    assert version.pretty == "3.0.1"
    schema = core.schema_validator(json.loads((folder / "schema.json").read_text()))
    faults = [f"{each.json_path}: {each.message}" for each in schema.iter_errors(bom)]
    context = json.loads((folder / "spdx-context.jsonld").read_text())["@context"]
    graph, model = rdflib.Graph(), rdflib.Graph()
    graph.parse(data=json.dumps({**bom, "@context": context}), format="json-ld")
    model.parse(folder / "spdx-model.ttl")
    return [*faults, *core.check_graph(graph, model, version, True)]


def test_the_spdx_bom_holds_against_the_official_schema_and_shapes() -> None:
    folder = Path(os.environ.get("QWENSTACK_SPDX_MODEL", "/nowhere"))
    if not folder.is_dir():
        pytest.skip("QWENSTACK_SPDX_MODEL names no folder with SPDX's schema and SHACL model")
    for name, digest in SPDX_MODEL.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    bom = json.loads(spdx_json(dossier()))
    assert spdx_faults(bom, folder) == []
    (package,) = [each for each in bom["@graph"] if each["type"] == "ai_AIPackage"]
    package["software_primaryPurpose"] = "weights"
    del bom["@graph"][0]["createdBy"]
    faults = " ".join(spdx_faults(bom, folder))
    assert "createdBy" in faults and "primaryPurpose" in faults


@settings(max_examples=30, deadline=None)
@given(st.lists(evidences, max_size=6))
def test_whatever_the_evidence_the_boms_are_valid(evidence: list[Evidence]) -> None:
    document = compose("a/b", evidence)
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(cyclonedx(document).decode()) is None
    )
    spdx.JSONLDDeserializer().read(io.BytesIO(spdx_json(document)), spdx.SHACLObjectSet())


def test_the_pdf_is_one_and_the_same() -> None:
    assert pdf(dossier()) == pdf(dossier())
    assert pdf(dossier()).startswith(b"%PDF-")


def write(folder: Path, document: Document, key_path: Path) -> str:
    folder.mkdir()
    key = load_key(key_path)
    files = {
        "dossier.json": document_json(document),
        "dossier.html": html(document).encode(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dossier.sig.json").write_bytes(sign(files, key))
    return public_text(key.public_key())


def test_a_signed_dossier_holds_and_every_edit_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    public = write(folder, dossier(), tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert problems(folder, public_key=public) == []
    assert "another key" in problems(folder, public_key="AAAA")[0]
    page = folder / "dossier.html"
    page.write_text(page.read_text().replace("Apache-2.0", "MIT"))
    assert problems(folder) == ["dossier.html was changed"]
    page.unlink()
    assert problems(folder) == ["dossier.html is missing"]
    (folder / "dossier.sig.json").unlink()
    assert problems(folder) == ["the dossier is not signed"]


def test_a_document_that_its_evidence_does_not_say_is_found(tmp_path: Path) -> None:
    honest = dossier()
    first, *rest = honest.sections
    row, *others = first.rows
    forged = msgspec.structs.replace(row, cells=("studio", row.cells[1]))
    lying = msgspec.structs.replace(
        honest, sections=(msgspec.structs.replace(first, rows=(forged, *others)), *rest)
    )
    write(tmp_path / "d", lying, tmp_path / "key.pem")
    assert problems(tmp_path / "d") == ["the document does not follow from its evidence"]


def test_a_change_names_what_must_be_reviewed_again() -> None:
    signed = said("sign-off.legal", "approved", method="declared", observed_at="2026-11-20")
    old = dossier(signed)
    later = [
        msgspec.structs.replace(each, observed_at="2026-12-01")
        if each.claim != "governing.id"
        else said("governing.id", "LicenseRef-scancode-qwen-2024", observed_at="2026-12-01")
        for each in WHOLE
    ]
    found = compare(old, compose("Qwen/Qwen3-8B", [*later, signed]))
    assert [(each.kind, each.claim) for each in found.changes] == [("changed", "governing.id")]
    assert "licence" in found.review
    assert found.void_sign_offs == ("legal",)
    assert compare(old, old).changes == ()


def test_patterns_cover_what_lies_below_them_only() -> None:
    assert matches("a.b", "a.*")
    assert not matches("ab", "a.*")
    assert not matches("a.b", "a")


def test_a_row_without_a_value_is_not_shown() -> None:
    unknown = (
        said("governing.id", "", status="unknown"),
        said("api.terms", "", status="unknown"),
        said("evaluation.measured.mmlu", "", status="unknown"),
    )
    document = compose("m", unknown)
    row = document.section("side-by-side").rows[0]
    assert (row.cells, row.standing) == (("unknown", "unknown"), "gap")
    (result,) = document.section("benchmarks").rows
    assert (result.cells[1], result.standing) == ("none measured", "gap")


def test_one_sign_off_hides_no_other() -> None:
    two = (
        said("sign-off.legal", "approved by A", method="declared"),
        said("sign-off.legal", "rejected by B", method="declared"),
        said("evaluation.measured.mmlu", 0.75, method="measured"),
        said("evaluation.measured.mmlu", 0.25, method="measured"),
    )
    document = compose("m", two)
    cells = [row.cells[0] for row in document.section("sign-offs").rows if row.label == "legal"]
    assert sorted(cells) == ["approved by A", "rejected by B"]
    (result,) = document.section("benchmarks").rows
    assert set(result.cells[1].split("; ")) == {"0.75", "0.25"} and len(result.evidence) == 2


def test_a_release_is_what_its_files_say_and_no_name_of_a_file_stops_that() -> None:
    name, weights = "acme/helper", b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    contents = {
        "README.md": b"---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-8B\n---\n",
        "license.safetensors": len(weights).to_bytes(8, "little") + weights + b"!",
        "model.gguf": b"GGUF" + b"\xff" * 40,
    }
    files = tuple(
        Entry(path, len(data), hashlib.sha256(data).hexdigest(), "", False, "")
        for path, data in contents.items()
    )
    named = which(name)
    found = by_files(name, named, files, lambda entry: io.BytesIO(contents[entry.path]))
    assert (named.base, found.base) == ("unknown", "Qwen/Qwen3-8B")
    assert (found.release, found.publisher, found.layer) == (None, "acme", "community")
    assert by_files(name, named, files[1:], lambda entry: io.BytesIO(contents[entry.path])) == named


def test_a_file_beside_the_signed_ones_is_found(tmp_path: Path) -> None:
    data = document_json(compose("m", WHOLE))
    (tmp_path / "dossier.json").write_bytes(data)
    key = load_key(tmp_path.parent / "beside-key.pem")
    (tmp_path / "dossier.sig.json").write_bytes(sign({"dossier.json": data}, key))
    assert problems(tmp_path, public_key=public_text(key.public_key())) == []
    (tmp_path / "dossier-final.pdf").write_bytes(b"%PDF-1.7")
    assert problems(tmp_path) == ["'dossier-final.pdf' is not signed"]

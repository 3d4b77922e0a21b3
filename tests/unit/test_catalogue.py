"""The catalogue's promises: no fact without a source, nothing dangling, and the traps on record."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from qwenstack.catalog.difference import changes
from qwenstack.catalog.listing import Filter, find, lines
from qwenstack.catalog.load import DATA, Catalogue, load, load_folder
from qwenstack.catalog.model import (
    Derivative,
    HostedKind,
    HostedState,
    NegativeKind,
    Record,
    Release,
    SourceKind,
    Status,
)
from qwenstack.catalog.read import citations, facts_of
from qwenstack.cli.catalog import catalog
from qwenstack.core import licences
from qwenstack.core.layers import Layer, governing_kind
from qwenstack.core.licences import Category, ObligationKind

CATALOGUE = load_folder(DATA, use_cache=False)
RECORDS: list[Record] = [
    record
    for group in CATALOGUE.__struct_fields__
    if group not in ("digest", "sources")
    for record in getattr(CATALOGUE, group)
]
APACHE = "Apache-2.0"
QWEN = "LicenseRef-scancode-qwen-2024"
QWEN_RESEARCH = "LicenseRef-scancode-qwen-research-2024"
TONGYI = "LicenseRef-scancode-tongyi-qianwen-2023"
TONGYI_RESEARCH = "LicenseRef-tongyi-qianwen-research-2023"


def release_of(hub_id: str) -> Release:
    found = CATALOGUE.find_repo(hub_id)
    assert found is not None, hub_id
    return found[0]


def test_no_fact_is_without_a_source_and_a_date() -> None:
    keys = {each.key for each in CATALOGUE.sources}
    for record in RECORDS:
        for field, key in citations(record):
            assert key in keys, f"{record.id}: {field} cites {key!r}"
        for field, fact in facts_of(record):
            assert datetime.date(2023, 1, 1) <= fact.checked, f"{record.id}: {field}"


def test_what_is_unknown_has_no_value_and_what_has_one_is_not_unknown() -> None:
    for record in RECORDS:
        for field, fact in facts_of(record):
            assert (fact.status is Status.UNKNOWN) == (fact.value is None), f"{record.id}: {field}"


def test_a_verified_licence_was_read_in_a_source_of_the_makers() -> None:
    for release in CATALOGUE.releases:
        if release.licence.status is Status.VERIFIED:
            source = CATALOGUE.find_source(release.licence.source)
            assert source is not None
            assert source.primary, f"{release.id}: {source.key} is {source.kind.value}"


def test_every_source_is_cited_and_says_whose_word_it_is() -> None:
    cited = {key for record in RECORDS for _, key in citations(record)}
    for source in CATALOGUE.sources:
        assert source.title
        assert source.locator
        assert isinstance(source.kind, SourceKind)
    unused = {each.key for each in CATALOGUE.sources} - cited
    assert len(unused) < 25, sorted(unused)


def test_every_licence_id_is_one_that_is_known() -> None:
    records: tuple[Release | Derivative, ...] = (*CATALOGUE.releases, *CATALOGUE.derivatives)
    for record in records:
        if record.licence.value is not None:
            assert licences.by_id(record.licence.value) is not None, record.id


def test_every_hosted_name_is_of_the_studio_under_api_terms() -> None:
    assert len(CATALOGUE.hosted) > 150
    for hosted in CATALOGUE.hosted:
        assert hosted.layer is Layer.STUDIO
        assert hosted.id == hosted.id.lower()
        assert governing_kind(hosted.layer) == "api-terms"
        if hosted.kind in (HostedKind.SNAPSHOT, HostedKind.ALIAS):
            main = CATALOGUE.find_hosted(hosted.main)
            assert main is not None
            assert hosted.id.startswith(main.id.removesuffix("-us"))


def test_what_is_gone_says_when_or_that_nobody_said() -> None:
    for hosted in CATALOGUE.hosted:
        if hosted.state.value is HostedState.GONE:
            assert hosted.retired.value is not None, hosted.id
        elif hosted.state.value is HostedState.LIVE:
            assert hosted.retired.value is None, hosted.id


def test_all_model_ids_of_the_makers_organisation_are_on_record() -> None:
    repos = [repo.id for release in CATALOGUE.releases for repo in release.repos]
    assert len(repos) == len({each.casefold() for each in repos})
    # The hub's own listing of 2026-07-04 had 458; ten came later.
    assert len(repos) >= 460
    assert all(each.startswith("Qwen/") for each in repos)


@pytest.mark.parametrize(
    ("hub_id", "licence"),
    [
        ("Qwen/Qwen-7B-Chat", TONGYI),
        ("Qwen/Qwen-1_8B", TONGYI_RESEARCH),
        ("Qwen/Qwen-VL-Chat", TONGYI),
        ("Qwen/Qwen1.5-0.5B-Chat", TONGYI_RESEARCH),
        ("Qwen/Qwen1.5-1.8B-Chat-GGUF", TONGYI_RESEARCH),
        ("Qwen/Qwen1.5-4B", TONGYI_RESEARCH),
        ("Qwen/Qwen1.5-7B", TONGYI),
        ("Qwen/Qwen1.5-72B", TONGYI),
        ("Qwen/CodeQwen1.5-7B", TONGYI_RESEARCH),
        ("Qwen/Qwen2-7B-Instruct", APACHE),
        ("Qwen/Qwen2-72B-Instruct-AWQ", TONGYI),
        ("Qwen/Qwen2-Math-72B", TONGYI),
        ("Qwen/Qwen2-VL-72B-Instruct", QWEN),
        ("Qwen/QVQ-72B-Preview", QWEN),
        ("Qwen/Qwen2.5-0.5B", APACHE),
        ("Qwen/Qwen2.5-3B", QWEN_RESEARCH),
        ("Qwen/Qwen2.5-3B-Instruct-GGUF", QWEN_RESEARCH),
        ("Qwen/Qwen2.5-Coder-3B-Instruct", QWEN_RESEARCH),
        ("Qwen/Qwen2.5-Coder-7B", APACHE),
        ("Qwen/Qwen2.5-72B-Instruct", QWEN),
        ("Qwen/Qwen2.5-Math-72B", QWEN),
        ("Qwen/Qwen2.5-Math-7B", APACHE),
        ("Qwen/Qwen2.5-Math-PRM-7B", QWEN),
        ("Qwen/Qwen2.5-Math-7B-PRM800K", QWEN),
        ("Qwen/Qwen2.5-Math-RM-72B", QWEN),
        ("Qwen/Qwen2.5-VL-3B-Instruct", QWEN_RESEARCH),
        ("Qwen/Qwen2.5-VL-7B-Instruct", APACHE),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", QWEN),
        ("Qwen/Qwen2.5-Omni-3B", QWEN_RESEARCH),
        ("Qwen/Qwen2.5-Omni-7B", APACHE),
        ("Qwen/QwQ-32B", APACHE),
        ("Qwen/WorldPM-72B", QWEN),
        ("Qwen/Qwen3-0.6B-MLX-4bit", APACHE),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", APACHE),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", APACHE),
        ("Qwen/Qwen3-4B-SafeRL", APACHE),
        ("Qwen/WebWorld-8B", None),
        ("Qwen/Qwen2-Audio-7B-Instruct", APACHE),
        ("Qwen/Qwen3.5-397B-A17B", APACHE),
        ("Qwen/Qwen3.8-27B", APACHE),
        ("Qwen/Qwen3.8-2.4T-A95B", "LicenseRef-qwen3.8-max"),
        ("Qwen/Qwen3.8-Flash-Next", "LicenseRef-qwen-community-1.0"),
        ("Qwen/Qwen-Image", APACHE),
        ("Qwen/Qwen-Image-2.1", "LicenseRef-qwen-research-2026"),
    ],
)
def test_the_licence_of_each_size_is_its_own(hub_id: str, licence: str | None) -> None:
    release = release_of(hub_id)
    assert release.licence.value == licence
    assert (release.licence.status is Status.UNKNOWN) == (licence is None)


@pytest.mark.parametrize(
    ("hub_id", "otherwise"),
    [
        ("Qwen/Qwen1.5-0.5B", TONGYI),
        ("Qwen/Qwen1.5-1.8B", TONGYI),
        ("Qwen/Qwen1.5-4B", TONGYI),
        ("Qwen/Qwen2-VL-72B", TONGYI),
        ("Qwen/QVQ-72B-Preview", APACHE),
        ("Qwen/Qwen2.5-VL-3B-Instruct", APACHE),
        ("Qwen/Qwen2.5-VL-72B-Instruct", APACHE),
        ("Qwen/Qwen3.8-2.4T-A95B", APACHE),
    ],
)
def test_where_sources_contradict_each_other_both_are_told(hub_id: str, otherwise: str) -> None:
    fact = release_of(hub_id).licence
    assert fact.in_conflict
    claim = next(each for each in fact.otherwise if each.value == otherwise)
    assert CATALOGUE.find_source(claim.source) is not None


def test_a_research_or_threshold_licence_never_counts_as_permissive() -> None:
    for release in CATALOGUE.releases:
        licence = licences.by_id(release.licence.value or "")
        if licence is not None and licence.id != APACHE:
            assert licence.category in (Category.CONDITIONAL, Category.NON_COMMERCIAL), release.id
    for name in ("qwen3.8-max", "qwen-community-1.0"):
        licence = licences.declared("other", name)
        assert licence is not None
        kinds = {each.kind for each in licence.obligations}
        assert ObligationKind.SERVICE_LICENCE in kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen/Qwen3.8-35B-A3B", NegativeKind.DOES_NOT_EXIST),
        ("Qwen3.8-35B-A3B-FP8", NegativeKind.DOES_NOT_EXIST),
        ("Qwen3.7", NegativeKind.HOSTED_ONLY),
        ("Qwen2.5-Max", NegativeKind.HOSTED_ONLY),
        ("qwen/qwen3-max", NegativeKind.HOSTED_ONLY),
        ("QwQ-Max-Preview", NegativeKind.ANNOUNCED_ONLY),
        ("Qwen/Qwen4-Exp", NegativeKind.PLACEHOLDER),
        ("Qwen3-72B", NegativeKind.DOES_NOT_EXIST),
    ],
)
def test_names_that_are_no_release_are_on_record_as_such(name: str, kind: NegativeKind) -> None:
    found = CATALOGUE.find_negative(name)
    assert found is not None
    assert found.kind is kind
    assert CATALOGUE.find_repo(name) is None
    assert CATALOGUE.find_source(found.source) is not None


def test_no_negative_case_names_a_repo_that_is_on_record() -> None:
    for each in CATALOGUE.negatives:
        assert CATALOGUE.find_repo(f"Qwen/{each.id}") is None, each.id


def test_qwen3_7_has_hosted_names_and_no_weights() -> None:
    names = [each for each in CATALOGUE.hosted if each.id.startswith("qwen3.7-")]
    assert {"qwen3.7-max", "qwen3.7-plus", "qwen3.7-flash"} <= {each.id for each in names}
    generation = CATALOGUE.find_generation("qwen3.7")
    assert generation is not None
    assert generation.open_weights.value is False
    assert not [each for each in CATALOGUE.releases if each.generation == "qwen3.7"]


def test_most_hosted_names_have_no_known_counterpart_and_say_so() -> None:
    known = {each.id: each.open_counterpart.value for each in CATALOGUE.hosted}
    assert known["qwen-plus"] is None
    assert known["qwen3.8-max"] == "qwen3.8-2.4t-a95b"
    assert known["qwen-vl-max-0809"] == "qwen2-vl-72b"
    assert known["qwen-vl-max"] is None
    flash = CATALOGUE.find_hosted("qwen3.8-flash")
    assert flash is not None
    assert flash.open_counterpart.value is None
    assert [each.value for each in flash.open_counterpart.otherwise] == ["qwen3.8-flash-next"]


def test_announced_and_actual_end_are_two_facts() -> None:
    turbo = CATALOGUE.find_hosted("qwen-turbo")
    assert turbo is not None
    assert turbo.retirement_noticed.value == datetime.date(2026, 7, 13)
    assert turbo.retired.value == datetime.date(2026, 10, 10)
    qwq = CATALOGUE.find_hosted("qwq-plus")
    assert qwq is not None
    assert qwq.retirement_noticed.value == datetime.date(2026, 7, 13)
    assert qwq.retired.value is None


def test_a_distillation_into_a_qwen_base_is_its_makers_under_their_licence() -> None:
    found = CATALOGUE.find_derivative("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    assert found is not None
    assert (found.licence.value, found.base.value, found.base_release) == (
        "MIT",
        "Qwen/Qwen2.5-Math-7B",
        "qwen2.5-math-7b",
    )
    organisation = CATALOGUE.find_organisation("deepseek-ai")
    assert organisation is not None
    assert organisation.layer is Layer.COMMUNITY


def test_a_permissive_tag_over_a_restricted_base_is_a_conflict() -> None:
    for derivative in CATALOGUE.derivatives:
        base = CATALOGUE.find_release(derivative.base_release)
        licence = licences.by_id(derivative.licence.value or "")
        if base is None or licence is None:
            continue
        base_licence = licences.by_id(base.licence.value or "")
        if licence.category is Category.PERMISSIVE and base_licence is not None:
            restricted = base_licence.category is not Category.PERMISSIVE
            assert bool(derivative.conflict) == restricted, derivative.id


@pytest.mark.parametrize(
    ("tag", "release", "carried"),
    [
        ("qwen", "qwen1.5-4b", TONGYI_RESEARCH),
        ("qwen:latest", "qwen1.5-4b", TONGYI_RESEARCH),
        ("qwen2.5:7b-instruct-q4_K_M", "qwen2.5-7b", APACHE),
        ("qwen2.5:3b", "qwen2.5-3b", QWEN_RESEARCH),
        ("qwen2:72b", "qwen2-72b", TONGYI),
        ("qwen3:30b", "qwen3-30b-a3b-thinking-2507", None),
        ("qwen3:30b-a3b-q4_K_M", "qwen3-30b-a3b", None),
        ("qwen3:8b", "qwen3-8b", None),
        ("qwen3-vl", "qwen3-vl-8b-thinking", None),
        ("qwen3.5", "qwen3.5-9b", None),
        ("deepseek-r1:7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None),
    ],
)
def test_an_ollama_tag_is_the_release_that_its_hash_says(
    tag: str, release: str, carried: str | None
) -> None:
    found = CATALOGUE.find_ollama(tag)
    assert found is not None
    assert found.release == release
    assert found.licence_carried.value == carried


def test_a_tag_that_carries_another_licence_than_upstream_is_a_conflict() -> None:
    conflicts = {each.id for each in CATALOGUE.ollama if each.conflict}
    assert {"qwen2.5:72b", "qwen2.5vl:3b", "qwen2.5vl:72b"} <= conflicts
    for tag in CATALOGUE.ollama:
        release = CATALOGUE.find_release(tag.release)
        if release is None or tag.licence_carried.value is None or release.licence.value is None:
            continue
        same = tag.licence_carried.value == release.licence.value
        assert same != bool(tag.conflict), tag.id


def test_deepseek_r1_8b_is_no_qwen_distillation_of_the_first_series() -> None:
    assert CATALOGUE.find_ollama("deepseek-r1:8b") is None
    assert CATALOGUE.find_ollama("deepseek-r1") is None


def test_a_host_is_found_exactly_or_by_its_longest_suffix() -> None:
    exact = CATALOGUE.find_host("DASHSCOPE-INTL.aliyuncs.com.")
    assert exact is not None
    assert exact.region.value == "ap-southeast-1"
    workspace = CATALOGUE.find_host("ws-1.cn-beijing.maas.aliyuncs.com")
    assert workspace is not None
    assert workspace.region.value == "cn-beijing"
    other = CATALOGUE.find_host("ws-1.me-central-1.maas.aliyuncs.com")
    assert other is not None
    assert other.region.value is None
    assert CATALOGUE.find_host("aliyuncs.com") is None
    assert CATALOGUE.find_host("dashscope.aliyuncs.com.evil.example") is None


def test_the_lag_between_layers_has_a_sign_and_can_be_unknown() -> None:
    days = {each.id: each.days for each in CATALOGUE.lags}
    assert days["qwen2-vl-72b"] == -21
    assert days["qwen3-coder"] == 0
    assert days["qwen3-asr"] == -143
    assert days["qwen3.8-max"] == -9
    assert days["scaleway-qwen3.8-27b"] == 34


def test_the_layers_say_who_owns_what() -> None:
    layers = {each.layer for each in CATALOGUE.organisations}
    assert layers == {
        Layer.CORPORATE,
        Layer.RESEARCH,
        Layer.STUDIO,
        Layer.WEIGHTS,
        Layer.COMMUNITY,
    }
    parent = CATALOGUE.find_organisation("alibaba-group")
    assert parent is not None
    assert any("9988" in each for each in parent.filings)
    publisher = CATALOGUE.find_organisation("Qwen")
    assert publisher is not None
    assert publisher.layer is Layer.RESEARCH


def test_sizes_with_a_known_shape_agree_with_its_count() -> None:
    for release in CATALOGUE.releases:
        shape = CATALOGUE.find_architecture(release.architecture)
        if shape is None or release.parameters.source != "derived-count":
            continue
        assert release.parameters.value == shape.parameters.value, release.id


# --- the lists, and the command line ---


def test_filters_narrow_and_never_mix_layers() -> None:
    everything = list(lines(CATALOGUE))
    assert len({each.id for each in everything if each.layer is Layer.WEIGHTS}) == len(
        CATALOGUE.releases
    )
    research = [each for each in everything if Filter(licence="non-commercial").takes(each)]
    assert {"qwen2.5-3b", "qwen2.5-coder-3b", "qwen-image-2.1"} <= {each.id for each in research}
    assert all(each.layer is not Layer.STUDIO for each in research)
    family = [each for each in everything if Filter(generation="qwen2.5").takes(each)]
    assert {"qwen2.5-7b", "qwen2.5-vl-7b", "qwq-32b"} <= {each.id for each in family}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Qwen/Qwen3-8B", ["release", "lookalike"]),
        ("qwen3-max", ["hosted", "negative", "lookalike"]),
        ("qwen2.5:72b", ["ollama"]),
        ("dashscope.aliyuncs.com", ["host"]),
        ("qwen-research", ["licence"]),
        ("nothing-of-the-kind", []),
    ],
)
def test_an_id_finds_every_record_that_it_names(name: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in find(CATALOGUE, name)] == kinds


def test_show_tells_value_status_and_source_and_what_contradicts() -> None:
    result = CliRunner().invoke(catalog, ["show", "Qwen/Qwen2.5-VL-3B-Instruct"])
    assert result.exit_code == 0
    assert f"{QWEN_RESEARCH}  [verified: hub-file" in result.output
    assert f"otherwise {APACHE}  [unsloth" in result.output
    assert "read in" in result.output


def test_show_as_json_carries_the_sources_it_cites() -> None:
    result = CliRunner().invoke(catalog, ["show", "qwen3.7-plus", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found[0]["kind"] == "hosted"
    keys = {each["key"] for each in found[0]["sources"]}
    assert found[0]["record"]["state"]["source"] in keys


def test_a_misspelt_id_gets_suggestions() -> None:
    result = CliRunner().invoke(catalog, ["show", "Qwen/Qwen3-8BB"])
    assert result.exit_code == 1
    assert "did you mean Qwen/Qwen3-8B" in result.output


def test_ls_prints_lines_and_json() -> None:
    text = CliRunner().invoke(catalog, ["ls", "--licence", "qwen-community-1.0"])
    assert text.exit_code == 0
    assert "qwen3.8-flash-next" in text.output
    found = json.loads(CliRunner().invoke(catalog, ["ls", "--layer", "studio", "--json"]).output)
    assert {each["layer"] for each in found} == {"studio"}


def test_diff_names_what_came_went_and_changed_and_not_a_later_look(tmp_path: Path) -> None:
    old = CATALOGUE
    first, *rest = old.releases
    fact = msgspec.structs.replace(first.licence, value="MIT", checked=datetime.date(2026, 11, 25))
    looked = msgspec.structs.replace(rest[0], checked=datetime.date(2026, 11, 25))
    new = Catalogue(
        **{
            **{name: getattr(old, name) for name in old.__struct_fields__},
            "releases": (
                msgspec.structs.replace(first, licence=fact),
                looked,
                *rest[1:-1],
                msgspec.structs.replace(rest[-1], id="a-new-one"),
            ),
        }
    )
    found = [(each.what, each.id, each.field) for each in changes(old, new)]
    assert found == [
        ("changed", first.id, "licence.value"),
        ("removed", rest[-1].id, ""),
        ("added", "a-new-one", ""),
    ]
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_bytes(msgspec.json.encode(old))
    after.write_bytes(msgspec.json.encode(new))
    result = CliRunner().invoke(catalog, ["diff", str(before), str(after)])
    assert result.exit_code == 1
    assert f"changed  release {first.id}: licence.value" in result.output
    same = CliRunner().invoke(catalog, ["diff", str(DATA), str(before)])
    assert same.exit_code == 0, same.output


def test_export_reads_back_as_the_same_catalogue(tmp_path: Path) -> None:
    result = CliRunner().invoke(catalog, ["export"])
    assert result.exit_code == 0
    read = msgspec.json.decode(result.stdout, type=Catalogue)
    assert read == load()


def test_an_operator_is_found_by_its_clients_prefix_and_by_its_host() -> None:
    catalogue = load()
    prefixes = [each for one in catalogue.organisations for each in one.client_prefixes]
    assert len(prefixes) == len(set(prefixes)) > 20
    for prefix, host, region in (
        ("openrouter", "openrouter.ai", ""),
        ("together", "api.together.xyz", ""),
        ("bedrock", "bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("vertex_ai", "us-central1-aiplatform.googleapis.com", "us-central1"),
        ("azure_ai", "acme.services.ai.azure.com", ""),
        ("ovhcloud", "qwen.endpoints.kepler.ai.cloud.ovh.net", ""),
    ):
        operator, record = catalogue.find_operator(prefix), catalogue.find_host(host)
        assert operator is not None and record is not None, host
        assert (record.operator, record.region_in(host)) == (operator.id, region)
    assert catalogue.find_host("bedrock-runtime.x.amazonaws.com") is None
    assert catalogue.find_host("bedrock-runtime.us-east-1.amazonaws.com.evil.example") is None

"""The hub's tables. Times are UTC microseconds (`_us`), hashes lower-case hex unless said.

Three groups: what bytes there are (`hub_packs` to `hub_segments`, addressed by content alone),
what they are published as (`hub_repos` to `hub_manifests`), and who may and did (`hub_accounts`
on). A commit and its manifest never change; a ref is the only row that a push moves.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from qwenstack.storage.tables import metadata

# A pack is a Xet xorb: chunks one after the other, stored raw. `chunks` holds for each its 32-byte
# hash and its length (4 bytes, little-endian), so that the wire form is made without reading it.
packs = Table(
    "hub_packs",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("chunks", LargeBinary, nullable=False),
    # The stored object's name: a new one each time, so that removing a pack cannot hit another.
    Column("object", String(48), nullable=False, unique=True),
    Column("created_us", BigInteger, nullable=False),
    # When an upload last wrote or reused it; a sweep leaves alone what was used lately.
    Column("used_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Where a chunk can be found, for deduplication; the first pack that held it wins.
chunks = Table(
    "hub_chunks",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True),
    Column("pack", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Index(None, "pack"),
    sqlite_with_rowid=False,
)

contents = Table(
    "hub_contents",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("xet_hash", String(64), nullable=False),
    Column("git_oid", String(40), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("used_us", BigInteger, nullable=False),
    Index(None, "xet_hash"),
    sqlite_with_rowid=False,
)

segments = Table(
    "hub_segments",
    metadata,
    Column("sha256", String(64), ForeignKey("hub_contents.sha256"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("pack", String(64), ForeignKey("hub_packs.hash"), nullable=False),
    Column("first_chunk", Integer, nullable=False),
    Column("end_chunk", Integer, nullable=False),
    Column("pack_offset", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Index(None, "pack"),
    sqlite_with_rowid=False,
)

# An LFS upload under way; its parts lie in the upload folder until it is whole.
uploads = Table(
    "hub_uploads",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("part_bytes", BigInteger, nullable=False),
    Column("repo_id", String(48), nullable=False),
    Column("account", String(96), nullable=False),
    Column("guest", Boolean, nullable=False),  # for a repo that the account may not write to
    Column("created_us", BigInteger, nullable=False),
    Index(None, "sha256"),
    Index(None, "account"),
)

repos = Table(
    "hub_repos",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("kind", String(16), nullable=False),  # model, dataset
    Column("name", String(200), nullable=False),  # namespace/name, as it was written
    Column("key", String(240), nullable=False, unique=True),  # kind:lower-case name
    Column("private", Boolean, nullable=False),
    Column("gated", String(8), nullable=False),  # "", auto, manual
    Column("created_by", String(96), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    # Projections, kept by the code that appends to hub_downloads and hub_likes.
    Column("downloads", BigInteger, nullable=False),
    Column("likes", BigInteger, nullable=False),
    # Of the main branch's card and facts, for lists and filters: a JSON document.
    Column("summary", Text, nullable=False),
    Index(None, "kind", "updated_us"),
)

# The names that a repo had before it moved.
repo_redirects = Table(
    "hub_repo_redirects",
    metadata,
    Column("key", String(240), primary_key=True),
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), nullable=False),
    sqlite_with_rowid=False,
)

refs = Table(
    "hub_refs",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("name", String(250), primary_key=True),  # refs/heads/main, refs/tags/v1, refs/pr/1
    Column("commit_oid", String(40), nullable=False),
    Column("message", Text),
    Column("updated_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

commits = Table(
    "hub_commits",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("oid", String(40), primary_key=True),
    Column("parents", Text, nullable=False),  # JSON list of oids
    Column("manifest", String(64), ForeignKey("hub_manifests.digest"), nullable=False),
    Column("title", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("author", String(96), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Index(None, "repo_id", "at_us"),
    sqlite_with_rowid=False,
)

# A release's files; the digest is the SHA-256 over the sorted (path, size, sha256).
manifests = Table(
    "hub_manifests",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("document", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# What a repo has shown that it holds: by an upload, a commit or a copy from a repo that its caller
# may read. Knowing a content's hash, which lists show, is no right to the content.
repo_contents = Table(
    "hub_repo_contents",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    # Whether a branch or tag ever had it: only then it counts as its namespace's.
    Column("published", Boolean, nullable=False),
    Index(None, "sha256"),
    sqlite_with_rowid=False,
)

# Bytes that the store took for somebody and that no branch has (yet, or any more): `key` is a
# content's SHA-256, a pack's hash, or the name of a transfer under way. They count as the account's
# until a branch has them or the garbage collection has removed them. `guest`: for a repo of others.
waiting = Table(
    "hub_waiting",
    metadata,
    Column("account", String(96), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("guest", Boolean, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Index(None, "key"),
    sqlite_with_rowid=False,
)

# What an operator allows an account or organisation; the account "*" is what all others get. Null
# leaves a limit to that row, or to the built-in default; -1 lifts it.
quotas = Table(
    "hub_quotas",
    metadata,
    Column("account", String(96), primary_key=True),
    Column("bytes_max", BigInteger),
    Column("repos_max", BigInteger),
    Column("waiting_bytes_max", BigInteger),
    Column("guest_bytes_max", BigInteger),
    sqlite_with_rowid=False,
)

accounts = Table(
    "hub_accounts",
    metadata,
    Column("key", String(96), primary_key=True),  # lower-case name
    Column("name", String(96), nullable=False),
    Column("kind", String(16), nullable=False),  # user, organisation
    Column("full_name", String(200), nullable=False),
    Column("email", String(200)),
    Column("operator", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Names that were given up: nobody gets one for a while, so that nobody is taken for who had it.
retired_names = Table(
    "hub_retired_names",
    metadata,
    Column("key", String(96), primary_key=True),  # lower-case name
    Column("became", String(96)),  # the account's new name; null for a deleted one
    Column("retired_us", BigInteger, nullable=False),
    Column("free_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

memberships = Table(
    "hub_memberships",
    metadata,
    Column("organisation", String(96), ForeignKey("hub_accounts.key"), primary_key=True),
    Column("user", String(96), ForeignKey("hub_accounts.key"), primary_key=True),
    Column("role", String(16), nullable=False),  # read, contributor, write, admin
    sqlite_with_rowid=False,
)

tokens = Table(
    "hub_tokens",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("account", String(96), ForeignKey("hub_accounts.key"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("prefix", String(24), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # read, write, fineGrained
    Column("scopes", Text, nullable=False),  # JSON, for fineGrained
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("last_used_us", BigInteger),
    Index(None, "account"),
)

# Who asked for, got or was refused a gated repo.
access_requests = Table(
    "hub_access_requests",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("account", String(96), ForeignKey("hub_accounts.key"), primary_key=True),
    Column("status", String(16), nullable=False),  # pending, accepted, rejected
    Column("fields", Text, nullable=False),  # JSON: what the form asked
    Column("reason", Text),
    Column("requested_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger),
    Column("decided_by", String(96)),
    Column("asked", Boolean, nullable=False),  # false for who was let in without asking
    sqlite_with_rowid=False,
)

likes = Table(
    "hub_likes",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("account", String(96), ForeignKey("hub_accounts.key"), primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

downloads = Table(
    "hub_downloads",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("day", String(10), primary_key=True),  # 2026-11-24, UTC
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

discussions = Table(
    "hub_discussions",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("title", Text, nullable=False),
    Column("status", String(16), nullable=False),  # open, closed, merged, draft
    Column("is_pull_request", Boolean, nullable=False),
    Column("target", String(250)),
    Column("author", String(96), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

discussion_events = Table(
    "hub_discussion_events",
    metadata,
    Column("repo_id", String(48), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("id", String(48), primary_key=True),
    Column("kind", String(24), nullable=False),  # comment, status-change, title-change, commit
    Column("author", String(96), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("document", Text, nullable=False),  # JSON
    Index(None, "author"),
    sqlite_with_rowid=False,
)

# What was found in a release's files: computed once for a manifest, since its bytes never change.
facts = Table(
    "hub_facts",
    metadata,
    Column("manifest", String(64), ForeignKey("hub_manifests.digest"), primary_key=True),
    Column("document", Text, nullable=False),  # JSON
    Column("computed_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What the scanner said of a content: by its version too, since a newer one may find more.
scans = Table(
    "hub_scans",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("scanner", String(64), primary_key=True),
    Column("verdict", String(16), nullable=False),  # clean, suspicious, refused
    Column("findings", Text, nullable=False),  # JSON list
    Column("scanned_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Weights' fingerprints by release, for the lineage index.
fingerprints = Table(
    "hub_fingerprints",
    metadata,
    Column("manifest", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("computed_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Where a mirrored release came from, as it was at the time of the copy.
origins = Table(
    "hub_origins",
    metadata,
    Column("repo_id", String(48), ForeignKey("hub_repos.id"), primary_key=True),
    Column("commit_oid", String(40), primary_key=True),
    Column("endpoint", Text, nullable=False),
    Column("upstream_name", String(200), nullable=False),
    Column("upstream_commit", String(64), nullable=False),
    Column("licence", String(96)),
    Column("licence_sha256", String(64)),
    Column("copied_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

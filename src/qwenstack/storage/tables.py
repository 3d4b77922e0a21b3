"""Every table, in one place. Amounts are integer micro-units, times are UTC microseconds (`_us`).

The ledger's tables (`transactions`, `postings`, `charges`) are append-only: nothing updates or
deletes a row there. `balances`, `budget_spend` and `free_quotas.used_tokens` are projections of
them, written in the same database transaction, and `ledger verify` recomputes each.
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
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# `sqlite_with_rowid=False`: a row lives in its key's tree, one page less to write for each bill.

workspaces = Table(
    "workspaces",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("plan", String(64), nullable=False),
    Column("region", String(64)),
    Column("currency", String(3), nullable=False),
    Column("billing", String(16), nullable=False),
    Column("credit_limit_micro", BigInteger),
    Column("free_quota_only", Boolean, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id")),
    Column("name", String(200), nullable=False),
    Column("prefix", String(24), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("models", Text),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger),
    Column("revoked_us", BigInteger),
    Column("last_used_us", BigInteger),
    Index(None, "workspace_id"),
)

plans = Table(
    "plans",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("document", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id"), nullable=False),
    Column("key_id", String(40), ForeignKey("api_keys.id")),
    Column("period", String(8), nullable=False),
    Column("limit_micro", BigInteger, nullable=False),
    Column("alert_percent", Integer, nullable=False),
    Column("stops", Boolean, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index(None, "workspace_id"),
)

budget_spend = Table(
    "budget_spend",
    metadata,
    Column("budget_id", String(40), ForeignKey("budgets.id"), primary_key=True),
    Column("period_start_us", BigInteger, primary_key=True),
    Column("spent_micro", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

free_quotas = Table(
    "free_quotas",
    metadata,
    Column("workspace_id", String(40), ForeignKey("workspaces.id"), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("granted_tokens", BigInteger, nullable=False),
    Column("used_tokens", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

changes = Table(
    "changes",
    metadata,
    Column("topic", String(32), primary_key=True),
    Column("version", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

transactions = Table(
    "transactions",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("workspace_id", String(40), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("memo", Text),
    Index(None, "workspace_id", "at_us"),
    sqlite_with_rowid=False,
)

postings = Table(
    "postings",
    metadata,
    Column("transaction_id", String(48), ForeignKey("transactions.id"), primary_key=True),
    Column("account", String(80), primary_key=True),
    Column("currency", String(3), nullable=False),
    Column("amount_micro", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

balances = Table(
    "balances",
    metadata,
    Column("account", String(80), primary_key=True),
    Column("currency", String(3), primary_key=True),
    Column("amount_micro", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

charges = Table(
    "charges",
    metadata,
    Column("request_id", String(48), ForeignKey("transactions.id"), primary_key=True),
    Column("workspace_id", String(40), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("surface", String(32), nullable=False),
    Column("model", String(200), nullable=False),
    Column("deployment", String(200), nullable=False),
    Column("engine", String(64), nullable=False),
    Column("engine_version", String(64), nullable=False),
    Column("region", String(64), nullable=False),
    Column("digest", String(80)),
    Column("outcome", String(16), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cached_explicit_tokens", BigInteger, nullable=False),
    Column("cache_creation_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("thinking", Boolean, nullable=False),
    Column("price", String(200), nullable=False),
    Column("lines", Text, nullable=False),
    Column("amount_micro", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("finished_us", BigInteger, nullable=False),
    Column("first_token_ms", Integer),
    Column("batch_id", String(48)),
    Index(None, "workspace_id", "finished_us"),
    sqlite_with_rowid=False,
)

open_streams = Table(
    "open_streams",
    metadata,
    Column("request_id", String(48), primary_key=True),
    Column("worker_id", String(48), nullable=False),
    Column("charge", LargeBinary, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

holds = Table(
    "holds",
    metadata,
    Column("request_id", String(48), primary_key=True),
    Column("worker_id", String(48), nullable=False),
    Column("workspace_id", String(40), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("model", String(200), nullable=False),
    Column("amount_micro", BigInteger, nullable=False),
    Column("free_tokens", BigInteger, nullable=False),
    Column("placed_us", BigInteger, nullable=False),
    Index(None, "workspace_id"),
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("heartbeat_us", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("actor", String(80), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id"), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(400), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("deleted_us", BigInteger),
    Index(None, "workspace_id", "created_us"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id"), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(48), nullable=False),
    Column("output_file_id", String(48)),
    Column("error_file_id", String(48)),
    Column("status", String(16), nullable=False),
    Column("errors", Text),
    Column("metadata", Text),
    Column("window_s", Integer, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("in_progress_us", BigInteger),
    Column("finalizing_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("cancelling_us", BigInteger),
    Column("worker_id", String(48)),
    Index(None, "workspace_id", "created_us"),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(48), ForeignKey("batches.id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("custom_id", String(200), nullable=False),
    Column("request_id", String(48), nullable=False, unique=True),
    Column("status", Integer),
    Column("body", LargeBinary),
    sqlite_with_rowid=False,
)

# More than the plan allows, until an instant. `key_id` and `model` None: of every one.
limit_raises = Table(
    "limit_raises",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id"), nullable=False),
    Column("key_id", String(40), ForeignKey("api_keys.id")),
    Column("model", String(200)),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("reason", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Index(None, "workspace_id"),
)

# Where alerts are sent. Of the secret that signs them, only the digest is here.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("workspace_id", String(40), ForeignKey("workspaces.id")),
    Column("url", Text, nullable=False),
    Column("secret_digest", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

# One for each budget and period whose alert line was crossed, whichever process saw it.
alerts = Table(
    "alerts",
    metadata,
    Column("budget_id", String(40), ForeignKey("budgets.id"), primary_key=True),
    Column("period_start_us", BigInteger, primary_key=True),
    Column("id", String(40), nullable=False),
    Column("raised_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What is sent to a webhook: tried again at `due_us` until it was taken or given up (`ended_us`).
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("webhook_id", String(40), nullable=False),
    Column("message_id", String(40), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("delivered", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index(None, "webhook_id"),
    Index(None, "due_us"),
)

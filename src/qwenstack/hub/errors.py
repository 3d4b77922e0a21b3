"""Why the hub refuses: each error knows its status and the code that client libraries look for.

    HubError
    ├── BadRequest            400
    ├── Unauthorized          401  no token, or one that is not known
    ├── Forbidden             403  a known account without the right
    │   ├── GatedRepo         403  asks for acceptance of the repo's terms first
    │   ├── RepoDisabled      403
    │   └── QuotaExceeded     403  the account may keep no more (quotas.py)
    ├── RepoNotFound          404  also for a private repo, to whoever may not see it
    ├── RevisionNotFound      404
    ├── EntryNotFound         404
    ├── NotFound              404  anything else: a user, a discussion, a route
    ├── Conflict              409
    ├── PreconditionFailed    412  the branch moved on
    ├── TooLarge              413
    ├── Refused               422  files that the scanner or the path rules refuse
    ├── TooMany               429
    ├── NotOffered            501  something that other hubs have
    └── NoSpace               507  the disk is full

huggingface_hub makes its own exception from the code: RepositoryNotFoundError, GatedRepoError, …
"""

from __future__ import annotations


class HubError(Exception):
    """A request that is not served. `message` is for the caller and names the way out.

    `headers` are added to the answer, such as the commit that a missing file was looked for in;
    `fields` to its JSON body.
    """

    status = 400
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        headers: dict[str, str] | None = None,
        fields: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}
        self.fields = fields or {}


class BadRequest(HubError):
    """The request does not hold what it should."""


class Unauthorized(HubError):
    """There is no token, or one that nobody holds."""

    status = 401


class Forbidden(HubError):
    """The account is known and has not the right."""

    status = 403


class GatedRepo(Forbidden):
    """The repo's terms must be accepted before its files are read."""

    code = "GatedRepo"


class RepoDisabled(Forbidden):
    """The operator has closed the repo. The client library knows this by its message."""

    code = "DisabledRepo"

    def __init__(self) -> None:
        super().__init__("Access to this resource is disabled.")


class RepoNotFound(HubError):
    """There is no such repo, or none that this caller may see."""

    status = 404
    code = "RepoNotFound"


class RevisionNotFound(HubError):
    """The repo has no such branch, tag or commit."""

    status = 404
    code = "RevisionNotFound"


class EntryNotFound(HubError):
    """The revision has no such file or folder."""

    status = 404
    code = "EntryNotFound"


class NotFound(HubError):
    """Something else that isn't there."""

    status = 404


class Conflict(HubError):
    """What should be made exists already, or stands in the way."""

    status = 409


class PreconditionFailed(HubError):
    """The branch no longer is where the caller believed."""

    status = 412


class TooLarge(HubError):
    """The body, or a part of it, is larger than the hub takes."""

    status = 413


class Refused(HubError):
    """Files that are not published: each is named with the reason."""

    status = 422
    code = "Refused"


class TooMany(HubError):
    """More at once than the hub takes; later it will."""

    status = 429


class NotOffered(HubError):
    """What the client can ask of some hub, and this one does not do."""

    status = 501


class NoSpace(HubError):
    """The disk is full: nothing of the request was kept."""

    status = 507

"""The one place where URIs of the API are taken apart, put together and described to the API server.

A scheme is a class here: `PATTERN` is what fields let through, `read` takes apart what follows `<scheme>://`, and `str` puts it
together again. To add one: its class, its entry in `Location`; mypy then finds each `match` that has no answer for it. A field names
the schemes it takes by `pattern(…)`, so that a new scheme is not accepted anywhere by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ClaimPath:
    """`pvc://claim/path`: a file or folder on a PersistentVolumeClaim of the job's namespace."""

    SCHEME: ClassVar[str] = "pvc"
    PATTERN: ClassVar[str] = r"pvc://[a-z0-9][-a-z0-9.]*/[^\\]+"

    claim: str
    path: str = ""
    """Relative to the claim's root; empty: the root itself."""

    @classmethod
    def read(cls, rest: str) -> ClaimPath:
        claim, _, path = rest.partition("/")
        return cls(claim, path)

    @property
    def stays_inside(self) -> bool:
        """Whether each part of the path is a plain name, so that none can lead out of the claim."""
        return {"", ".", ".."}.isdisjoint(self.path.split("/"))

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}" if self.path else f"pvc://{self.claim}"


@dataclass(frozen=True)
class HubRepository:
    """`hf://org/name`: a repository on the Hugging Face hub."""

    SCHEME: ClassVar[str] = "hf"
    PATTERN: ClassVar[str] = r"hf://[A-Za-z0-9][-A-Za-z0-9._]*/[-A-Za-z0-9._]+"

    name: str
    """`org/name`, as the hub's clients take it."""

    @classmethod
    def read(cls, rest: str) -> HubRepository:
        return cls(rest)

    def __str__(self) -> str:
        return f"hf://{self.name}"


@dataclass(frozen=True)
class LocalPath:
    """`file:///path`, or a plain path: in a run file on a laptop only, no field of the API takes it."""

    SCHEME: ClassVar[str] = "file"

    path: str

    @classmethod
    def read(cls, rest: str) -> LocalPath:
        return cls(rest)

    def __str__(self) -> str:
        return f"file://{self.path}"


Location = ClaimPath | HubRepository | LocalPath

_SCHEMES: dict[str, type[Location]] = {location.SCHEME: location for location in (ClaimPath, HubRepository, LocalPath)}


def parse(uri: str) -> Location:
    """What a URI names; a text without scheme is a path. Errors: ValueError for a scheme that nobody here knows."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalPath(uri)
    if scheme not in _SCHEMES:
        raise ValueError(f"{scheme}:// is no scheme of a source; there are {', '.join(f'{known}://' for known in _SCHEMES)}")
    return _SCHEMES[scheme].read(rest)


def claim_path(uri: str) -> ClaimPath:
    """Claim and path of a URI that is known to lie on a claim. Errors: ValueError for any other."""
    location = parse(uri)
    if not isinstance(location, ClaimPath):
        raise ValueError("expected a URI of the form pvc://claim/path")
    return location


def claim_of(uri: str) -> str | None:
    """Name of the claim that a URI lies on; None where it lies elsewhere, and for what cannot be read."""
    return claim_path(uri).claim if uri.startswith(f"{ClaimPath.SCHEME}://") else None


def repository_of(uri: str) -> str | None:
    """`org/name` of a repository on the hub; None for what lies elsewhere."""
    location = parse(uri)
    return location.name if isinstance(location, HubRepository) else None


def pattern(*schemes: type[ClaimPath] | type[HubRepository]) -> str:
    """The regular expression of a field that takes URIs of these schemes."""
    forms = "|".join(scheme.PATTERN for scheme in schemes)
    return f"^({forms})$" if len(schemes) > 1 else f"^{forms}$"


def belongs_to(scheme: type[ClaimPath] | type[HubRepository], member: str) -> str:
    """CEL: `member` is set only where `source`, its sibling, has this scheme."""
    return f"!has(self.{member}) || self.source.startsWith('{scheme.SCHEME}://')"


def without_climbing(member: str) -> tuple[str, str]:
    """The CEL rule, with its sentence, that a URI has no part `..`."""
    return (
        f"!self.{member}.contains('/../') && !self.{member}.endsWith('/..')",
        f"{member} must not climb with '..': name the path itself",
    )

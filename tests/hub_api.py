"""The Hub's endpoints over the stored repositories: who may do what, and what each request is answered."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from hub_storage import (
    LFS_SUFFIXES,
    NAME,
    REGULAR_LIMIT,
    HubError,
    Repository,
    Storage,
    card_metadata,
    check_card,
    lfs_pointer,
)

API = re.compile(r"/api/(models|datasets)/([^/]+)/([^/]+)(?:/(.+))?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+)/([^/]+)/resolve/([^/]+)/(.+)")
LFS_BATCH = re.compile(r"/(?:(datasets)/)?([^/]+)/([^/]+)\.git/info/lfs/objects/batch")
STORED = re.compile(r"/(lfs-upload|lfs-verify|blobs)/(models|datasets)/([^/]+)/([^/]+)/([0-9a-f]{64})")


class User(NamedTuple):
    name: str
    role: str = "write"


@dataclass
class Reply:
    """An answer: `body`, or `length` bytes of the file `path` from `start`."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    start: int = 0
    length: int = 0

    @classmethod
    def json(cls, value, status: int = 200, headers: dict | None = None) -> "Reply":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubApi:
    """Answers requests; `url` is the server's own address, `storage_url` that of its LFS storage."""

    def __init__(self, root: str | Path, tokens: dict):
        self.storage, self.url, self.storage_url = Storage(root), "", ""
        self.users = {key: User(user) if isinstance(user, str) else User(*user) for key, user in tokens.items()}

    def user_of(self, authorization: str | None) -> User | None:
        return self.users.get((authorization or "").removeprefix("Bearer "))

    @staticmethod
    def split(repo: str) -> tuple[str, str, str]:
        kind, owner, name = ["models", *repo.split("/")][-3:]
        return kind, owner, name

    def load(self, kind: str, owner: str, name: str) -> Repository:
        repository = self.storage.repository(kind, owner, name)
        if not NAME.fullmatch(owner) or not NAME.fullmatch(name) or not repository.exists:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository.load()

    def answer(self, method: str, path: str, query: dict, headers, body) -> Reply:
        if stored := STORED.fullmatch(path):
            return self.answer_stored(method, stored, path, query, headers, body)
        authorization = headers.get("Authorization")
        user = self.user_of(authorization)
        if authorization and not user:
            raise HubError(401, "Invalid credentials in Authorization header")
        with self.storage.lock:
            if match := API.fullmatch(path):
                kind, owner, name, rest = match.groups()
                parts = [unquote(part) for part in rest.split("/")] if rest else []
                return self.answer_api(method, kind, owner, name, parts, query, headers, body, user)
            if match := RESOLVE.fullmatch(path):
                kind, owner, name, revision, file = match.groups()
                repository = self.readable(kind or "models", owner, name, user)
                return self.answer_resolve(method, repository, unquote(revision), unquote(file), headers)
            if match := LFS_BATCH.fullmatch(path):
                kind, owner, name = match.groups()
                return self.answer_batch(self.writable(kind or "models", owner, name, user), json.load(body))
            return self.answer_account(method, path, headers, body, user)

    def readable(self, kind: str, owner: str, name: str, user: User | None) -> Repository:
        """The repository, if this user may know of it; a stranger cannot tell a private one from a missing one."""
        try:
            repository = self.load(kind, owner, name)
            if repository.data["private"] and (user is None or user.name != owner):
                raise HubError(404, "Repository not found", "RepoNotFound")
            return repository
        except HubError as error:
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound") from error
            raise

    def writable(self, kind: str, owner: str, name: str, user: User | None) -> Repository:
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        repository = self.readable(kind, owner, name, user)
        self.check_writer(user, owner)
        return repository

    def check_writer(self, user: User | None, owner: str) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role != "write":
            raise HubError(403, f"Forbidden: the token of {user.name} has the role '{user.role}', not 'write'")
        if user.name != owner:
            raise HubError(403, f"Forbidden: {user.name} has no right to write under the namespace '{owner}'")

    def answer_account(self, method: str, path: str, headers, body, user: User | None) -> Reply:
        """What does not concern one existing repository."""
        match method, path:
            case "GET", "/api/whoami-v2":
                if user is None:
                    raise HubError(401, "Invalid username or password.")
                token = {"displayName": "loopback", "role": user.role}
                account = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": []}
                return Reply.json({**account, "auth": {"type": "access_token", "accessToken": token}})
            case "POST", "/api/repos/create":
                return self.create(json.load(body), user)
            case "DELETE", "/api/repos/delete":
                wanted = json.load(body)
                owner = wanted.get("organization") or (user.name if user else "")
                kind = (wanted.get("type") or "model") + "s"
                self.storage.remove(self.writable(kind, owner, wanted["name"], user))
                return Reply.json({})
            case "POST", "/api/validate-yaml":
                return self.validate(json.load(body)["content"], headers)
        raise HubError(404, f"The loopback Hub has no {method} {path}")

    def create(self, wanted: dict, user: User | None) -> Reply:
        kind, name = (wanted.get("type") or "model") + "s", wanted["name"]
        owner = wanted.get("organization") or (user.name if user else "")
        self.check_writer(user, owner)
        if kind not in ("models", "datasets"):
            raise HubError(400, f"The loopback Hub keeps models and datasets, got type '{wanted['type']}'")
        if not NAME.fullmatch(name) or name.endswith((".git", ".")):
            raise HubError(400, f"Invalid repository name '{name}'")
        repository = self.storage.repository(kind, owner, name)
        url = f"{self.url}/{repository.url_path}"
        if repository.exists:
            raise HubError(409, f"You already created this {kind[:-1]} repo", url=url)
        repository.create(wanted.get("visibility") == "private" or wanted.get("private") is True)
        return Reply.json({"url": url, "name": repository.id, "id": repository.id})

    def validate(self, content: str, headers) -> Reply:
        errors, warnings = check_card(content)
        if errors and "text/plain" in headers.get("Accept", ""):
            return Reply(400, "\n".join(errors).encode(), {"Content-Type": "text/plain"})
        listed = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        return Reply.json(listed, 400 if errors else 200)

    def answer_api(self, method, kind, owner, name, parts, query, headers, body, user) -> Reply:
        if method in ("GET", "HEAD") or parts[:1] == ["paths-info"]:
            return self.answer_reading(method, self.readable(kind, owner, name, user), parts, query, headers, body)
        repository = self.writable(kind, owner, name, user)
        if query.get("create_pr") == ["1"]:
            raise HubError(400, "The loopback Hub has no pull requests")
        match method, *parts:
            case "POST", "preupload", revision:
                return Reply.json({"files": preupload(repository.tree(revision), json.load(body)["files"])})
            case "POST", "commit", revision:
                lines = [json.loads(line) for line in body.read().splitlines() if line.strip()]
                oid = repository.commit(revision, user.name, lines)
                url = f"{self.url}/{repository.url_path}/commit/{oid}"
                return Reply.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
            case "POST", "branch", *branch:
                start = json.loads(body.read() or b"{}").get("startingPoint") or "main"
                repository.point("branches", "/".join(branch), start)
            case "POST", "tag", revision:
                repository.point("tags", json.load(body)["tag"], revision)
            case "DELETE", "branch" | "tag" as group, *reference:
                repository.unpoint({"branch": "branches", "tag": "tags"}[group], "/".join(reference))
            case _:
                raise HubError(404, f"The loopback Hub has no {method} {'/'.join(parts)} on a repository")
        return Reply.json({})

    def answer_reading(self, method, repository: Repository, parts, query, headers, body) -> Reply:
        match method, *parts:
            case ("GET" | "HEAD",):
                return Reply.json(info(repository, "main", "blobs" in query))
            case "GET" | "HEAD", "revision", revision:
                return Reply.json(info(repository, revision, "blobs" in query))
            case "GET", "refs":
                return Reply.json(references(repository) | ({"pullRequests": []} if "include_prs" in query else {}))
            case "GET", "tree", revision, *folder:
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                return Reply.json(listing(repository.tree(revision), "/".join(folder), recursive))
            case "POST", "paths-info", revision:
                text = body.read().decode()
                posted = json.loads(text) if "json" in headers.get("Content-Type", "") else parse_qs(text)
                everything = {entry["path"]: entry for entry in listing(repository.tree(revision), "", True)}
                return Reply.json([everything[path] for path in posted.get("paths", []) if path in everything])
            case "GET", "commits", revision:
                return Reply.json([commit_line(commit) for commit in repository.history(revision)])
        raise HubError(404, f"The loopback Hub has no {method} {'/'.join(parts)} on a repository")

    def answer_resolve(self, method: str, repository: Repository, revision: str, file: str, headers) -> Reply:
        oid = repository.resolve(revision)
        entry, commit = repository.tree(oid).get(file), {"X-Repo-Commit": oid}
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", commit)
        if not entry["lfs"]:
            return file_reply(repository.content_path(entry), entry["oid"], headers, commit)
        location = self.signed(self.storage_url, "blobs", repository, entry["sha256"], entry["size"])
        linked = {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        text = f"Found. Redirecting to {location}".encode()
        return Reply(302, text, {"Location": location, "ETag": f'"{entry["oid"]}"', **linked, **commit})

    def answer_batch(self, repository: Repository, wanted: dict) -> Reply:
        if wanted.get("operation") != "upload":
            raise HubError(400, f"The loopback Hub takes LFS uploads only, got '{wanted.get('operation')}'")
        objects = []
        for entry in wanted["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if not (repository.folder / "lfs" / entry["oid"]).exists():
                answer["actions"] = {
                    "upload": {"href": self.signed(self.storage_url, "lfs-upload", repository, **entry)},
                    "verify": {"href": self.signed(self.url, "lfs-verify", repository, **entry)},
                }
            objects.append(answer)
        return Reply.json({"transfer": "basic", "objects": objects})

    def signed(self, base: str, action: str, repository: Repository, oid: str, size: int) -> str:
        path = f"/{action}/{repository.kind}/{repository.id}/{oid}"
        return f"{base}{path}?size={size}&signature={self.storage.sign(path)}"

    def answer_stored(self, method: str, stored: re.Match, path: str, query: dict, headers, body) -> Reply:
        """LFS storage: its signed addresses stand for a token."""
        action, kind, owner, name, oid = stored.groups()
        if query.get("signature") != [self.storage.sign(path)]:
            raise HubError(403, "The signature does not fit this address")
        repository = self.load(kind, owner, name)
        blob = repository.folder / "lfs" / oid
        match action, method:
            case "lfs-upload", "PUT":
                repository.store_blob(oid, int(query["size"][0]), body)
                return Reply(headers={"ETag": f'"{oid}"'})
            case "lfs-verify", "POST":
                if not blob.exists() or blob.stat().st_size != json.load(body)["size"]:
                    raise HubError(404, f"{oid} is not stored with that size")
                return Reply.json({})
            case "blobs", "GET" | "HEAD" if blob.exists():
                return file_reply(blob, oid, headers, {})
        raise HubError(404, f"Nothing stored for {method} {path}")


def file_reply(path: Path, etag: str, headers, extra: dict[str, str]) -> Reply:
    """A stored file, or the part of it that a single `Range` names."""
    size = path.stat().st_size
    extra = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **extra}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
    if not wanted or wanted.groups() == ("", ""):
        return Reply(200, b"", extra, path, 0, size)
    first, last = wanted.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        raise HubError(
            416, f"{headers['Range']} lies outside {size} bytes", None, {"Content-Range": f"bytes */{size}"}
        )
    return Reply(206, b"", {**extra, "Content-Range": f"bytes {start}-{end}/{size}"}, path, start, end - start + 1)


def preupload(tree: dict[str, dict], files: list[dict]) -> list[dict]:
    """How each file is to come: large ones, known binary suffixes and what has a zero byte in its sample as LFS."""
    answers = []
    for file in files:
        binary = Path(file["path"]).suffix in LFS_SUFFIXES or b"\0" in base64.b64decode(file.get("sample", ""))
        mode = "lfs" if binary or file["size"] > REGULAR_LIMIT else "regular"
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if stored := tree.get(file["path"]):
            answer["oid"] = stored["sha256"] if stored["lfs"] else stored["oid"]
        answers.append(answer)
    return answers


def file_entry(path: str, entry: dict) -> dict:
    described = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
    return described | ({"lfs": lfs_of(entry, "oid")} if entry["lfs"] else {})


def lfs_of(entry: dict, key: str) -> dict:
    pointer = len(lfs_pointer(entry["sha256"], entry["size"]))
    return {key: entry["sha256"], "size": entry["size"], "pointerSize": pointer}


def listing(tree: dict[str, dict], folder: str, recursive: bool) -> list[dict]:
    """Files and folders under a folder, sorted by path."""
    start, entries = f"{folder}/" if folder else "", {}
    inside = {path: entry for path, entry in tree.items() if path.startswith(start)}
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    for path, entry in inside.items():
        parts = path.removeprefix(start).split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(len(parts), 2)):
            parent = start + "/".join(parts[:depth])
            under = [(p, e["oid"]) for p, e in tree.items() if p.startswith(f"{parent}/")]
            oid = hashlib.sha1(repr(under).encode()).hexdigest()
            entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, entry)
    return [entries[path] for path in sorted(entries)]


def info(repository: Repository, revision: str, blobs: bool) -> dict:
    """What `model_info` and `dataset_info` read."""
    oid = repository.resolve(revision)
    tree, siblings = repository.tree(oid), []
    for path, entry in tree.items():
        sibling = {"rfilename": path}
        if blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            sibling |= {"lfs": lfs_of(entry, "sha256")} if entry["lfs"] else {}
        siblings.append(sibling)
    readme = tree.get("README.md")
    card = card_metadata(repository.content_path(readme).read_text()) if readme else None
    card = card or {}
    described = {"id": repository.id, "author": repository.owner, "sha": oid, "private": repository.data["private"]}
    described |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": card.get("tags", [])}
    described |= {"createdAt": repository.data["created"], "lastModified": repository.data["commits"][oid]["date"]}
    shown = {key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card}
    return json.loads(json.dumps({**described, **shown, "cardData": card, "siblings": siblings}, default=str))


def references(repository: Repository) -> dict:
    def lines(group: str, prefix: str) -> list[dict]:
        targets = repository.data[group].items()
        return [{"name": name, "ref": f"refs/{prefix}/{name}", "targetCommit": oid} for name, oid in targets]

    return {"branches": lines("branches", "heads"), "tags": lines("tags", "tags"), "converts": []}


def commit_line(commit: dict) -> dict:
    line = {"id": commit["oid"], "title": commit["title"], "message": commit["description"], "date": commit["date"]}
    return {**line, "authors": [{"user": commit["author"], "avatar": ""}]}

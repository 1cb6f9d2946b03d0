"""Repositories of the loopback Hub on disk: commits, branches, tags, files and LFS blobs, and the check of a card.

Layout under the root: `repos/{models,datasets}/{owner}/{name}/` with `repository.json` (the history; replaced
whole, so a commit is there or is not), `files/{sha256}` (sent with the commit) and `lfs/{sha256}` (before it).
"""

import base64
import datetime
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

import yaml

LFS_SUFFIXES = {
    f".{s}" for s in "safetensors png bin pt pth ckpt onnx h5 msgpack npy npz parquet arrow zip gz".split()
}
REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; the Hub takes no larger file outside LFS
GITATTRIBUTES = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in sorted(LFS_SUFFIXES)).encode()
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
BASE_MODEL_RELATIONS = ("adapter", "finetune", "merge", "quantized")


class HubError(Exception):
    """An answer other than 2xx: `code` and the message also go into `X-Error-Code` and `X-Error-Message`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.body = status, message, code, headers or {}, body


def git_blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".incoming-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(beside, path)


class Repository:
    """A repository; `data` holds `private`, `created`, `branches`, `tags` and `commits` (each with its whole tree)."""

    def __init__(self, folder: Path, kind: str, owner: str, name: str):
        self.folder, self.kind, self.owner, self.name = folder, kind, owner, name
        self.id = f"{owner}/{name}"
        self.url_path = self.id if kind == "models" else f"{kind}/{self.id}"

    @property
    def exists(self) -> bool:
        return (self.folder / "repository.json").exists()

    def load(self) -> "Repository":
        self.data = json.loads((self.folder / "repository.json").read_text())
        return self

    def save(self) -> None:
        write_whole(self.folder / "repository.json", json.dumps(self.data).encode())

    def create(self, private: bool) -> None:
        now = timestamp()
        self.data = {"private": private, "created": now, "branches": {"main": None}, "tags": {}, "commits": {}}
        self.record("main", self.owner, "initial commit", "", {".gitattributes": self.store_file(GITATTRIBUTES)})

    def resolve(self, revision: str) -> str:
        """The 40 hex digits of a branch, a tag or a commit (7 digits suffice)."""
        for group, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/")):
            if (name := revision.removeprefix(prefix)) in self.data[group]:
                return self.data[group][name]
        found = [oid for oid in self.data["commits"] if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def tree(self, revision: str) -> dict[str, dict]:
        """path -> {sha256, size, oid, lfs}; `oid` is git's blob sha1 (of the pointer, for an LFS file)."""
        return self.data["commits"][self.resolve(revision)]["files"]

    def history(self, revision: str) -> list[dict]:
        """The commits behind a revision, newest first."""
        commits, oid = [], self.resolve(revision)
        while oid is not None:
            commits.append(self.data["commits"][oid])
            oid = commits[-1]["parent"]
        return commits

    def content_path(self, entry: dict) -> Path:
        return self.folder / ("lfs" if entry["lfs"] else "files") / entry["sha256"]

    def store_file(self, content: bytes) -> dict:
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "lfs": False}
        write_whole(self.content_path(entry), content)
        return {**entry, "oid": git_blob_oid(content)}

    def lfs_entry(self, path: str, sha256: str, size: int | None) -> dict:
        blob = self.folder / "lfs" / sha256
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not blob.exists():
            raise HubError(400, f"LFS pointer of '{path}' points to '{sha256}', which was never uploaded")
        stored = blob.stat().st_size
        if size not in (None, stored):
            raise HubError(400, f"LFS pointer of '{path}' names {size} bytes, the stored file has {stored}")
        oid = git_blob_oid(lfs_pointer(sha256, stored))
        return {"sha256": sha256, "size": stored, "lfs": True, "oid": oid}

    def store_blob(self, sha256: str, size: int, source) -> None:
        """Takes an uploaded LFS file; kept only when its size and sha256 are the announced ones."""
        digest, received, folder = hashlib.sha256(), 0, self.folder / "lfs"
        folder.mkdir(exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=folder, prefix=".incoming-")
        with os.fdopen(handle, "wb") as file:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                received += len(chunk)
                file.write(chunk)
        if (received, digest.hexdigest()) != (size, sha256):
            os.unlink(beside)
            raise HubError(400, f"The upload of {sha256} ({size} bytes) arrived as {digest.hexdigest()} ({received})")
        os.replace(beside, folder / sha256)

    def record(self, branch: str, author: str, title: str, description: str, files: dict[str, dict]) -> str:
        """Adds a commit with these files to a branch."""
        parent, now = self.data["branches"][branch], timestamp()
        named = json.dumps([parent, author, title, description, now, files, secrets.token_hex(8)])
        oid = hashlib.sha1(named.encode()).hexdigest()
        commit = {"oid": oid, "parent": parent, "author": author, "title": title, "description": description}
        self.data["commits"][oid] = {**commit, "date": now, "files": dict(sorted(files.items()))}
        self.data["branches"][branch] = oid
        self.save()
        return oid

    def commit(self, branch: str, author: str, lines: list[dict]) -> str:
        """Carries out the NDJSON of a commit request as one commit, or refuses it and changes nothing."""
        branch = branch.removeprefix("refs/heads/")
        if branch not in self.data["branches"]:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise HubError(400, "The first line of a commit must be a header with a summary")
        header, head = lines[0]["value"], self.data["branches"][branch]
        parent = header.get("parentCommit")
        if parent is not None and not (len(parent) >= 7 and head.startswith(parent)):
            raise HubError(412, f"A commit has happened since {parent}; the head is {head}. Refresh and try again.")
        files = dict(self.tree(head))
        for line in lines[1:]:
            self.apply(files, line["key"], line["value"])
        for path in files:
            if any(str(folder) in files for folder in Path(path).parents):
                raise HubError(400, f"'{path}' lies in a folder that is also a file")
        readme = files.get("README.md")
        if readme and readme != self.tree(head).get("README.md"):
            if errors := check_card(self.content_path(readme).read_text(errors="replace"))[0]:
                raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return self.record(branch, author, header["summary"], header.get("description", ""), files)

    def apply(self, files: dict[str, dict], key: str, value: dict) -> None:
        path = value["path"]
        parts = path.removesuffix("/").split("/")
        if any(part in ("", ".", "..", ".git") for part in parts):
            raise HubError(400, f"'{path}' is no path inside a repository")
        if key == "file":
            content = value["content"]
            content = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
            if len(content) > REGULAR_LIMIT:
                raise HubError(400, f"'{path}' has {len(content)} bytes; over {REGULAR_LIMIT} only LFS will do")
            files[path] = self.store_file(content)
        elif key == "lfsFile":
            files[path] = self.lfs_entry(path, value["oid"], value.get("size"))
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith("/".join(parts) + "/"))]
            if not gone:
                raise HubError(404, f"'{path}' does not exist, so it cannot be deleted", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown commit operation '{key}'")

    def point(self, group: str, name: str, revision: str) -> None:
        """Creates a branch or a tag."""
        if name in self.data[group]:
            raise HubError(409, f"Reference '{name}' already exists in {group}")
        if not re.fullmatch(r"(?!.*(\.\.|//|@\{))[^\s~^:?*\[\\/.][^\s~^:?*\[\\]*", name):
            raise HubError(400, f"'{name}' is no valid name for a reference")
        self.data[group][name] = self.resolve(revision)
        self.save()

    def unpoint(self, group: str, name: str) -> None:
        if name not in self.data[group]:
            raise HubError(404, f"Reference '{name}' does not exist in {group}", "RevisionNotFound")
        if (group, name) == ("branches", "main"):
            raise HubError(403, "The branch main cannot be deleted")
        del self.data[group][name]
        self.save()


class Storage:
    """Every repository under a root folder. `lock` is held for one request's work on a repository."""

    def __init__(self, root: str | Path):
        self.root, self.lock = Path(root), threading.RLock()
        key = self.root / "signing-key"
        if not key.exists():
            write_whole(key, secrets.token_bytes(32))
        self.key = key.read_bytes()

    def repository(self, kind: str, owner: str, name: str) -> Repository:
        return Repository(self.root / "repos" / kind / owner / name, kind, owner, name)

    def remove(self, repository: Repository) -> None:
        """Renamed first: a server killed in between leaves no half repository."""
        grave = Path(tempfile.mkdtemp(dir=self.root, prefix="deleted-")) / "repository"
        os.replace(repository.folder, grave)
        shutil.rmtree(grave.parent)

    def sign(self, path: str) -> str:
        """What makes a storage address usable without a token, as a pre-signed one is."""
        return hmac.new(self.key, path.encode(), "sha256").hexdigest()[:32]


def timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def card_metadata(text: str):
    """The YAML between the two `---` lines that open a card; None without any."""
    match = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)(^|\n)---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(match.group(1)) if match else None


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings on a README's metadata."""
    try:
        data = card_metadata(text)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return [f"YAML Metadata Error: expected a mapping, got {type(data).__name__}"], []
    errors = []
    for key in ("license", "language", "tags", "datasets", "metrics", "base_model", "pipeline_tag", "library_name"):
        value = data.get(key, "")
        listed = value if isinstance(value, list) and key not in ("pipeline_tag", "library_name") else [value]
        if not all(isinstance(item, str) for item in listed):
            errors.append(f'"{key}" must be a string or a list of strings, got {value!r}')
    relation = data.get("base_model_relation", "adapter")
    if relation not in BASE_MODEL_RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(BASE_MODEL_RELATIONS)}, got {relation!r}')
    if "model-index" in data:
        errors += check_model_index(data["model-index"])
    return errors, [] if "license" in data else ['"license" is missing in the metadata of the card']


def check_model_index(index) -> list[str]:
    """What a `model-index` lacks, each with its place."""
    errors = []

    def need(holder, key: str, place: str, kind: type | tuple = object):
        value = holder.get(key) if isinstance(holder, dict) else None
        if value is None or not isinstance(value, kind):
            errors.append(f'"{place}.{key}" is required')
            return None
        return value

    for m, model in enumerate(index if isinstance(index, list) else [index]):
        place = f"model-index[{m}]"
        need(model, "name", place, str)
        for r, result in enumerate(need(model, "results", place, list) or []):
            at = f"{place}.results[{r}]"
            for group, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
                holder = need(result, group, at, dict)
                for key in keys if holder is not None else ():
                    need(holder, key, f"{at}.{group}", str)
            for i, metric in enumerate(need(result, "metrics", at, list) or []):
                need(metric, "type", f"{at}.metrics[{i}]", str)
                need(metric, "value", f"{at}.metrics[{i}]")
    return errors if isinstance(index, list) else ['"model-index" must be a list', *errors]

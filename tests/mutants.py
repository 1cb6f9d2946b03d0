"""Mutants of every file that is read of checkpoints and runs, each a hostile or broken form of a good one; seeded.

The hashes that an attacker can make anew are made anew: checksums.json, the digest of state.json, the protocol hash.
"""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from smope_hf.data.manifest import protocol_hash

DEEP, LONG = 100_000, 20_000
VALUES = {  # what stands in place of a field's value, as JSON text
    "null": "null", "true": "true", "text": '"x"', "empty text": '""', "list": "[]", "object": "{}", "one": "1",
    "negative": "-1", "half": "0.5", "large": "1.5", "million": "1000000", "billion": str(10**9), "huge": str(10**18),
    "beyond": "9" * 5000, "NaN": "NaN", "infinity": "1e999", "nested": "[" * 70 + "]" * 70,
    "deep": "[" * DEEP + "]" * DEEP, "long text": json.dumps("a" * DEEP), "escape": r'"\u001b[31mred\u202e\u0000"',
    "surrogate": r'"\ud800"', "list of lists": "[[[[0]]]]", "list of text": '["a", "b"]', "float": "3.0",
    "list of objects": "[{}]", "path": '"../../../etc/passwd"', "many": f"[{'0,' * LONG}0]",
    "many lists": f"[{'[],' * LONG}[]]", "many keys": "{" + ",".join(f'"k{n}": 0' for n in range(LONG)) + "}",
}  # fmt: skip
EDITS = ("delete", "as text", "twice", "lengthened", "shortened", "added")  # what needs the value that is there
MARK = '"@@"'


@dataclass(frozen=True)
class Mutant:
    """One file of a world, broken.

    Args:
        file: path in the world.
        what: what was done.
        write: makes the file, from its path.
        fields: names that a message may use for the place.
    """

    file: str
    what: str
    write: Callable[[Path], None]
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {'.'.join(self.fields) + ' ' if self.fields else ''}{self.what}"


# ---------------------------------------------------------------------- JSON


def places(content, path: tuple = ()) -> Iterator[tuple]:
    """A path to each kind of field: of lists the first entry stands for all, of tables of names two of the names."""
    if path:
        yield path
    if isinstance(content, dict):
        names = list(content) if len(content) < 40 else list(content)[:2]
        for name in names:
            yield from places(content[name], (*path, name))
    elif isinstance(content, list) and content:
        yield from places(content[-1], (*path, len(content) - 1))


def mutated_json(text: str, path: tuple, how: str) -> str | None:
    """The text with one field changed; None where the change cannot be made."""
    content = json.loads(text)
    holder = content
    for part in path[:-1]:
        holder = holder[part]
    old, literal = holder[path[-1]], VALUES.get(how)
    if how == "delete":
        del holder[path[-1]]
    elif how == "as text":
        holder[path[-1]] = json.dumps(old) if not isinstance(old, str) else [old]
    elif how == "twice":
        if isinstance(path[-1], int):
            return None
        holder[path[-1]], literal = "@@", f"{json.dumps(old)}, {json.dumps(path[-1])}: {json.dumps(old)}"
    elif how in ("lengthened", "shortened"):
        if not isinstance(old, list) or not old:
            return None
        holder[path[-1]] = old * (LONG // len(old)) if how == "lengthened" else old[:-1]
    elif how == "added":
        if not isinstance(old, (dict, list)):
            return None
        holder[path[-1]] = {**old, "unheard_of": [1]} if isinstance(old, dict) else [*old, {"unheard_of": 1}]
    else:
        if json.dumps(old) == literal:
            return None
        holder[path[-1]] = "@@"
    return json.dumps(content) if literal is None else json.dumps(content).replace(MARK, literal, 1)


def json_mutants(world: Path, file: str, count: int, chance: random.Random) -> Iterator[Mutant]:
    """So many mutants of a JSON file, every field at least once where the count allows it."""
    text = (world / file).read_text()
    found = list(places(json.loads(text)))
    order = [path for _ in range(1 + 3 * count // len(found)) for path in chance.sample(found, len(found))]
    kinds, made = [], 0
    for path in order:
        if made == count:
            return
        kinds = kinds or chance.sample([*VALUES, *EDITS], len(VALUES) + len(EDITS))
        how = kinds.pop()
        broken = mutated_json(text, path, how)
        if broken is None or broken == json.dumps(json.loads(text)):
            continue
        made += 1
        yield Mutant(file, how, _writer(with_own_hashes(file, broken)), tuple(p for p in path if isinstance(p, str)))


def with_own_hashes(file: str, text: str) -> str:
    """The JSON with those hashes of itself made anew that it holds."""
    try:
        content = json.loads(text)
        if file.endswith("manifest.json") and "protocol_hash" in content:
            return text.replace(json.dumps(content["protocol_hash"]), json.dumps(protocol_hash(content["tasks"])), 1)
        if file.endswith("state.json") and "trainer" not in file and "sha256" in content:
            old = content.pop("sha256")
            digest = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            return text.replace(json.dumps(old), json.dumps(digest)) if isinstance(old, str) else text
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass  # who cannot read it cannot make its hash either
    return text


# ---------------------------------------------------------------------- safetensors


def split_safetensors(raw: bytes) -> tuple[dict, bytes]:
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def joined(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_mutants(world: Path, file: str, count: int, chance: random.Random) -> Iterator[Mutant]:
    """So many mutants of a safetensors file: of one tensor's entry, of its values, and of the header as a whole."""
    raw = (world / file).read_bytes()
    header, data = split_safetensors(raw)
    names = [name for name in header if name != "__metadata__"]
    whole = list(_header_mutants(header, data, names))
    edits = list(TENSOR_EDITS)
    for number in range(count):
        if number < len(whole) and number < count // 3:
            what, content = whole[chance.randrange(len(whole))] if count < 12 else whole[number]
            yield Mutant(file, what, _writer(content))
            continue
        name = chance.choice(names)
        what = edits[number % len(edits)]
        fields = () if what in OF_THE_HEADER else (name,)
        yield Mutant(file, f"{what} of {name}", _writer(TENSOR_EDITS[what](header, data, name)), fields)


def _entry(header: dict, name: str, **changes) -> dict:
    return {**header, name: {**header[name], **changes}}


def _without(header: dict, data: bytes, name: str) -> bytes:
    """A file that is whole but for one tensor."""
    kept, parts, start = {}, [], 0
    for key, entry in header.items():
        if key == "__metadata__" or key == name:
            continue
        first, last = entry["data_offsets"]
        kept[key] = {**entry, "data_offsets": [start, start + last - first]}
        parts.append(data[first:last])
        start += last - first
    return joined(kept, b"".join(parts))


def _with(header: dict, data: bytes, name: str, **entry) -> bytes:
    return joined({**header, name: {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2, **entry}}, data)


def _filled(header: dict, data: bytes, name: str, byte: bytes) -> bytes:
    first, last = header[name]["data_offsets"]
    return joined(header, data[:first] + byte * (last - first) + data[last:])


def _reshaped(header: dict, data: bytes, name: str) -> bytes:
    shape = header[name]["shape"]
    return joined(_entry(header, name, shape=shape[::-1] if shape != shape[::-1] else [1, *shape]), data)


def _retyped(header: dict, data: bytes, name: str) -> bytes:
    other = {"F32": "I32", "I64": "F64", "BOOL": "U8", "F64": "I64", "U8": "I8", "I32": "F32"}
    return joined(_entry(header, name, dtype=other[header[name]["dtype"]]), data)


TENSOR_EDITS = {
    "type": _retyped,
    "shape": _reshaped,
    "flat": lambda h, d, n: joined(_entry(h, n, shape=[-1]), d),
    "NaN": lambda h, d, n: _filled(h, d, n, b"\xff"),
    "largest numbers": lambda h, d, n: _filled(h, d, n, b"\x7f"),
    "zeros": lambda h, d, n: _filled(h, d, n, b"\x00"),
    "absence": _without,
    "empty tensor": lambda h, d, n: _with({}, d, n) if len(h) == 1 else joined(_entry(h, n, shape=[0]), d),
    "huge shape": lambda h, d, n: joined(_entry(h, n, shape=[2**40, 2**40]), d),
    "no type": lambda h, d, n: joined(_entry(h, n, dtype="F13"), d),
    "offsets": lambda h, d, n: joined(_entry(h, n, data_offsets=[0, 2**60]), d),
}
OF_THE_HEADER = ("flat", "huge shape", "no type", "offsets", "empty tensor")  # then no tensor of the file is known


def _header_mutants(header: dict, data: bytes, names: list[str]) -> Iterator[tuple[str, bytes]]:
    text = json.dumps(header).encode()
    yield "a stranger", _with(header, data, "../../evil")
    yield "a long name", _with(header, data, "n" * DEEP)
    yield "control characters in a name", _with(header, data, "\x1b[31mred\u202e")
    yield (
        "many empty tensors",
        joined(
            {**header, **{f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(LONG)}}, data
        ),
    )
    yield "many axes", _with(header, data, names[0] + "x", shape=[0] + [1] * LONG)
    yield "header of a list", joined(b"[]", data)
    yield "deep header", joined(b"[" * DEEP + b"]" * DEEP, data)
    yield "a tensor twice", joined(text[:-1] + b"," + json.dumps(names[0]).encode() + b":" + json.dumps(
        header[names[0]]).encode() + b"}", data)  # fmt: skip
    yield "header length beyond the file", struct.pack("<Q", 2**50) + text + data
    yield "header length 0", struct.pack("<Q", 0) + text + data
    yield "no data", joined(header, b"")
    yield "metadata of numbers", joined({**header, "__metadata__": {"format": 5}}, data)
    yield "nothing in it", joined({}, b"")


# ---------------------------------------------------------------------- any file


def file_mutants(world: Path, file: str, other: str, chance: random.Random, count: int = 99) -> Iterator[Mutant]:
    """Mutants that any file can have: cut, noise, another file in its place, something that is no file."""
    raw = (world / file).read_bytes()
    swapped = (world / other).read_bytes()
    noise = bytearray(raw)
    for _ in range(1 + len(raw) // 100):
        noise[chance.randrange(len(noise))] = chance.randrange(256)
    contents = {
        "empty": b"", "cut": raw[: len(raw) // 2], "one byte short": raw.rstrip()[:-1], "noise": bytes(noise),
        "a flipped bit": _flipped(raw, chance), "random bytes": chance.randbytes(1000), "zeros": bytes(10_000),
        f"{other} in its place": swapped, "a list": b"[1, 2]", "a number": b"1", "open lists": b"[" * DEEP,
        "not UTF-8": raw[:9] + b"\xff\xfe" + raw[9:], "byte order mark": b"\xef\xbb\xbf" + raw,
    }  # fmt: skip
    links = {"many lists": _flood, "a fifo": _fifo, "a folder": _folder, "link to /dev/zero": _link("/dev/zero")}
    links |= {"link to itself": _loop, "link to /etc/passwd": _link("/etc/passwd"), "socket": _socket}
    mutants = [Mutant(file, what, _writer(content)) for what, content in contents.items() if content != raw]
    mutants += [Mutant(file, what, write) for what, write in links.items()]
    yield from mutants if count >= len(mutants) else chance.sample(mutants, count)


def _writer(content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(raw)


def _flipped(raw: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]


def _flood(path: Path):
    path.write_bytes(b'{"a": [' + b"[]," * (6 * 2**20) + b"[]]}")


def _fifo(path: Path):
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path):
    path.unlink()
    path.mkdir()


def _loop(path: Path):
    path.unlink()
    path.symlink_to(path.name)


def _socket(path: Path):
    import socket

    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name has at most 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def _link(target: str) -> Callable[[Path], None]:
    def write(path: Path):
        path.unlink()
        path.symlink_to(target)

    return write

"""Checks of a checkpoint that somebody else wrote: names, types and shapes before memory is taken, then values."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from .foreign_files import open_regular, read_bytes
from .safe_json import ADVICE, clipped, read_json, short_name, shown

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS, MAX_AXES = 2**15, 16  # a ViT of 1024 layers, the most that is allowed, has half as many tensors
SPARE_ELEMENTS = 2**24  # what a backbone may hold beside its file's tensors: tables that are computed, not stored
FLOATING = ("F16", "BF16", "F32", "F64")
INTEGER, BOOLEAN = ("I64",), ("BOOL",)
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
Header = dict[str, tuple[tuple[int, ...], str]]


# ---------------------------------------------------------------------- files


def inside(folder: str | os.PathLike, path: str | os.PathLike) -> Path:
    """The path, unless it leads out of the folder; links into the blobs of the Hub's cache are where they belong.

    Raises:
        ValueError: naming the file and where it leads.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [root, *_blobs_of(root)]
    if not any(real.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{path} leads out of its folder, to {real}. A checkpoint's files lie in its own folder: copy the file "
            "there if you trust it."
        )
    return Path(path)


def _blobs_of(folder: Path) -> list[Path]:
    """In the Hub's cache, where .../models--owner--name/snapshots/<commit> links to: the blobs beside it."""
    repositories = [parent.parent.parent for parent in (folder, *folder.parents) if parent.parent.name == "snapshots"]
    return [repository / "blobs" for repository in repositories if repository.name.startswith("models--")]


def shard_names(index: str | os.PathLike) -> list[str]:
    """The files that a shard index lists.

    Raises:
        ValueError: for a name that is not that of a safetensors file beside the index.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is {shown(names)}. Allowed: an object of file names. {ADVICE}")
    for tensor, name in names.items():
        if not isinstance(name, str) or not SHARD.fullmatch(name) or ".." in name:
            raise ValueError(
                f"{index}: weight_map[{shown(tensor)}] is {shown(name)}. Allowed: the name of a .safetensors file in "
                f"the same folder. {ADVICE}"
            )
    return sorted(set(names.values()))


def read_header(path: str | os.PathLike) -> Header:
    """Names, shapes and types of a safetensors file's tensors, without reading the tensors.

    Raises:
        ValueError: when it is no safetensors file, or a broken one.
    """
    try:
        _check_header_size(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, UnicodeError) as error:
        raise ValueError(
            f"{path} is no readable safetensors file: {clipped(str(error), 200)}. Pickles are never read. "
            f"{_to_have_again(path)}"
        ) from error


def _check_header_size(path: str | os.PathLike):
    """Refuse a header that lists more than any model has, before it is parsed."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise SafetensorError(f"header length {length}, and at most {MAX_HEADER_BYTES} bytes are read")
        header = file.read(length)
    tensors, numbers = header.count(b"{"), header.count(b",")
    if tensors > MAX_TENSORS or numbers > MAX_TENSORS * MAX_AXES:
        raise SafetensorError(
            f"about {tensors} tensors with {numbers} numbers, and at most {MAX_TENSORS} tensors of {MAX_AXES} axes "
            "are read"
        )


def _to_have_again(path: str | os.PathLike) -> str:
    """What to do about a damaged file, in Python as on the command line."""
    folder, real = Path(os.path.realpath(Path(path).parent)), Path(os.path.realpath(path))
    if any(real.is_relative_to(blobs.parent) for blobs in _blobs_of(folder)):
        return f"Delete {real}, and it is downloaded again when the model is loaded next."
    return "Copy it again from where it came from, or, of a run, take the folder of another task."


def read_tensors(paths: list[str | os.PathLike]) -> dict[str, Tensor]:
    """The tensors of safetensors files whose headers were checked.

    They lie in memory of their own: `safe_open` would map the file, and whoever writes to it later would change them.

    Raises:
        ValueError: when a file is broken by now.
        OSError: when one is no regular file.
    """
    tensors = {}
    for path in paths:
        try:
            tensors.update(load(read_bytes(path)))
        except SafetensorError as error:
            reason = clipped(str(error), 200)
            raise ValueError(f"{path} cannot be read any more: {reason}. {_to_have_again(path)}") from error
    return tensors


def read_exactly(path: str | os.PathLike, expected: dict, reason: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that holds some and no others.

    Args:
        path: the file.
        expected: for each name its types and its shape.
        reason: what the file has to fit, for the message.

    Raises:
        ValueError: naming the tensor that is missing, too many, or has another type or shape.
        OSError: when it cannot be read.
    """
    header = read_header(path)
    check_names(header, expected, path, reason)
    for name, (types, shape) in expected.items():
        if header[name][0] != tuple(shape) or header[name][1] not in types:
            found = f"{header[name][1]} {shown(header[name][0])}"
            raise ValueError(f"{path}: {name} is {found}, and {reason} has it as {types[0]} {tuple(shape)}. {ADVICE}")
    return read_tensors([path])


def check_names(header: Header, expected: Iterable[str], file: str | os.PathLike, reason: str):
    """Compare the names in a header with those that there have to be.

    Raises:
        ValueError: naming the first that is missing or too many.
    """
    missing, extra = sorted(set(expected) - header.keys()), sorted(header.keys() - set(expected))
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"holds {shown(extra[0])} as well"
        raise ValueError(f"{file} {what}, which does not fit {reason}. {ADVICE}")


# ---------------------------------------------------------------------- shapes, from headers


def check_shapes(header: Header, expected: dict, file: str | os.PathLike, reason: str = ""):
    """Compare a header with the tensors that the config asks for.

    Args:
        header: of the file.
        expected: for each name its types and its axes, each a pair of the config's field and its value.
        file: for the message.
        reason: what in the config sets which tensors there are.

    Raises:
        ValueError: naming the tensor, the config's field, and both values.
    """
    check_names(header, expected, file, reason or "config.json")
    for name, (types, axes) in expected.items():
        shape, dtype = header[name]
        if dtype not in types:
            raise ValueError(f"{file}: {name} has type {dtype}. Allowed: {', '.join(types)}. {ADVICE}")
        says = next((axis for axis, size in zip(axes, shape, strict=False) if axis[1] != size), None)
        if says or len(axes) != len(shape):
            field, value = says or ("a shape", tuple(size for _, size in axes))
            raise ValueError(
                f"config.json says {field} = {shown(value)}, but {name} in {file} has shape {shown(shape)}, where the "
                f"config makes it {tuple(size for _, size in axes)}. {ADVICE}"
            )


def check_adapter(header: Header, config, head_shape: tuple[int, int], file: str | os.PathLike):
    """Check the tensors of experts and head against the config.

    Args:
        header: of experts and head alone.
        config: a [`SMoPEConfig`].
        head_shape: heads H and head size d of the backbone.
        file: for the message.

    Raises:
        ValueError: naming the tensor, the config's field, and both values.
    """
    heads = ("backbone_config.num_attention_heads", head_shape[0])
    size = ("backbone_config.hidden_size / num_attention_heads", head_shape[1])
    experts = ("num_experts", config.num_experts)
    features = ("backbone_config.hidden_size", config.hidden_size)
    classes = ("the number of classes", config.num_labels)
    layer = {
        "keys": (FLOATING, (heads, experts, size)),
        "values": (FLOATING, (heads, experts, size)),
        "previous_keys": (FLOATING, (heads, experts, size)),
        "usage_counts": (INTEGER, (heads, experts)),
        "frequently_used": (BOOLEAN, (heads, experts)),
    }
    count = len(config.prompt_layers)
    expected = {f"prefix_experts.{index}.{name}": wanted for index in range(count) for name, wanted in layer.items()}
    expected["classifier.weight"] = (FLOATING, (classes, features))
    expected["classifier.bias"] = (FLOATING, (classes,))
    check_shapes(header, expected, file, f"prompt_layers = {shown(config.prompt_layers)} of config.json")


def check_adapter_values(tensors: dict[str, Tensor], file: str | os.PathLike):
    """Refuse experts or a head with NaN or infinity, and negative usage.

    Raises:
        ValueError: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{file}: {name} holds NaN or infinity. Allowed: finite numbers. {ADVICE}")
        if name.endswith("usage_counts") and bool((tensor < 0).any()):
            raise ValueError(f"{file}: {name} holds {int(tensor.min())}. Allowed: counts from 0. {ADVICE}")


def check_depth(layers: int, tensors: int, file: str | os.PathLike, field: str):
    """Check that a file holds enough tensors for the layers that a config claims, before any layer is built."""
    if layers > tensors:
        raise ValueError(f"config.json says {field} = {layers}, but {file} holds only {tensors} tensors. {ADVICE}")


def build_on_meta(build: Callable[[], nn.Module], source: str) -> nn.Module:
    """A model without memory for its weights.

    Raises:
        ValueError: when the config makes no model.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # of the backbone's own class, which may fail in any way on a config nobody checked
        raise ValueError(
            f"{source} makes no model: {type(error).__name__}: {clipped(str(error), 500)}. {ADVICE}"
        ) from error


def check_backbone_shapes(header: Header, meta: nn.Module, file: str | os.PathLike, sizes: str):
    """Compare a standalone checkpoint's backbone with the model that its config makes.

    Files keep older names than the model has, so the shapes are compared as a whole. A backbone that was given as a
    loaded model may have a pooler, which SMoPE does not use.

    Args:
        header: of the backbone's tensors.
        meta: the model, without memory.
        file: for the message.
        sizes: those in the config, for the message.

    Raises:
        ValueError: naming a tensor that fits nowhere, or a shape that is missing.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in meta.state_dict().items()}
    missing = Counter(wanted.values()) - Counter(shape for shape, _ in header.values())
    extra = Counter(shape for shape, _ in header.values()) - Counter(wanted.values())
    extra -= Counter(shape for name, (shape, _) in header.items() if "pooler." in name)
    if missing or extra:
        if extra:
            name = next(name for name, (shape, _) in sorted(header.items()) if shape in extra)
            problem = (
                f"{short_name(name)} in {file} has shape {shown(header[name][0])}, for which the model has no place"
            )
        else:
            name = next(name for name, shape in sorted(wanted.items()) if shape in missing)
            problem = f"{file} lacks a tensor of the shape {wanted[name]}, such as {name}"
        raise ValueError(f"backbone_config of config.json ({sizes}) does not fit: {problem}. {ADVICE}")
    for name, (_, dtype) in header.items():
        if dtype not in FLOATING:
            raise ValueError(f"{file}: {short_name(name)} has type {dtype}. Allowed: {', '.join(FLOATING)}. {ADVICE}")
    check_memory(header, meta, file)


def check_memory(header: Header, meta: nn.Module, file: str | os.PathLike):
    """Refuse a model that would take much more memory than its file has weights.

    Raises:
        ValueError: naming both numbers of elements.
    """
    held = sum(torch.Size(shape).numel() for shape, _ in header.values())
    needed = sum(tensor.numel() for tensors in (meta.parameters(), meta.buffers()) for tensor in tensors)
    if needed > 2 * held + SPARE_ELEMENTS:
        raise ValueError(
            f"The sizes in config.json ask for {needed} numbers, but {file} holds {held}: hidden_size, "
            f"intermediate_size, image_size or another size is wrong. {ADVICE}"
        )

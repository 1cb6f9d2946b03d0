"""Random numbers that depend on what they are for and not on what was drawn before."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed of its own for each purpose, such as `derive_seed(0, "shuffle", task, epoch)`; 0 to 2**63 - 1."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derive_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator with the derived seed: the same numbers on every device, in every process, after any resume."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))

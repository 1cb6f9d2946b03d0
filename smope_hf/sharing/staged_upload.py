"""The files of a staged checkpoint as operations of a commit: what is uploaded is what was hashed."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd

MOST_IN_MEMORY = 64 * 2**20  # bytes


class ChangedFileError(RuntimeError):
    """A file is not the one any more whose hash goes along with it."""


def additions(files: dict[str, Path], hashes: dict[str, str]) -> list[CommitOperationAdd]:
    """Operations that add files to a repository.

    Files of up to 64 MiB are read once, and those bytes go to the Hub. Larger ones the client reads again to upload:
    for them the hash is compared that it announces, and the Hub compares what arrives with that.

    Args:
        files: path in the repository -> file on this machine.
        hashes: SHA-256 by path in the repository, of those files that have one.

    Raises:
        ChangedFileError: for a file that has another hash by now.
    """
    found = []
    for path, file in sorted(files.items()):
        small = file.stat().st_size <= MOST_IN_MEMORY
        operation = CommitOperationAdd(path, file.read_bytes() if small else file)
        expected, announced = hashes.get(path), operation.upload_info.sha256.hex()
        if expected not in (None, announced):
            raise ChangedFileError(
                f"{file} was changed while it was pushed: its SHA-256 was {expected[:16]}..., and is "
                f"{announced[:16]}... now. Nothing of this task was pushed. Push again when nothing writes there any "
                "more."
            )
        found.append(operation)
    return found

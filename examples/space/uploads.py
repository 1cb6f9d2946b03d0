"""Takes uploads: images in a multipart form, written to the disk as they come, within limits that hold meanwhile."""

import logging
import shutil
from pathlib import Path

from files import Files
from limits import FORMATS, Limits
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from routes import NotTaken

HEADERS = 2**10  # bytes of one file's headers: its name is in them
SIGNATURE = 12  # bytes that tell the kind of an image
CLOSED_FORM = "That is no upload of this page. Reload it, and try again."

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # or a visitor could fill the log with bad forms


async def take_upload(headers: dict[bytes, bytes], chunks, files: Files, limits: Limits, address: str) -> list[str]:
    """Keep the images of one request.

    Args:
        headers: of the request, by lower-case name.
        chunks: the body, as it comes.
        files: told of every image.
        limits: of their number and size.
        address: who sends them.

    Returns:
        The paths of the images.

    Raises:
        NotTaken: when the request is not an upload of this page, is too large, or is no image; nothing is kept then.
    """
    kind, options = parse_options_header(headers.get(b"content-type", b""))
    length = headers.get(b"content-length", b"")
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise NotTaken(400, CLOSED_FORM)
    if not length.isdigit():
        raise NotTaken(411, "The size of the upload is missing.")
    with files.room_for(address, int(length)):
        form = _Form(files, limits)
        try:
            parser = MultipartParser(
                options[b"boundary"], form.callbacks(), max_header_count=8, max_header_size=HEADERS
            )
            async for chunk in chunks:
                parser.write(chunk)
            form.check_whole()
        except FormParserError as error:
            form.give_up()
            raise NotTaken(400, CLOSED_FORM) from error
        except BaseException:  # also a visitor who leaves: nothing of a part of an upload stays
            form.give_up()
            raise
        for path, media in form.taken:
            files.add_sent(path, media, address)
        return [str(path) for path, _ in form.taken]


class _Form:
    """The files of one form; the parser calls it as the bytes come."""

    def __init__(self, files: Files, limits: Limits):
        self.files, self.limits = files, limits
        self.taken: list[tuple[Path, str]] = []
        self.whole = False
        self._field, self._value, self._disposition = b"", b"", b""
        self._file, self._path, self._size, self._start = None, None, 0, b""

    def callbacks(self) -> dict:
        names = "part_begin part_data part_end header_field header_value header_end headers_finished end"
        return {f"on_{name}": getattr(self, name) for name in names.split()}

    def part_begin(self):
        self._field, self._value, self._disposition = b"", b"", b""

    def header_field(self, data: bytes, start: int, end: int):
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int):
        self._value += data[start:end]

    def header_end(self):
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def headers_finished(self):
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"files" or b"filename" not in options:
            raise NotTaken(400, CLOSED_FORM)
        if len(self.taken) >= self.limits.most_images:
            raise NotTaken(413, f"At most {self.limits.most_images} images can be sent at once. Send fewer.")
        self._path = self.files.place(options[b"filename"].decode("utf-8", "replace"))
        self.taken.append((self._path, ""))
        self._file, self._size, self._start = self._path.open("xb"), 0, b""

    def part_data(self, data: bytes, start: int, end: int):
        self._size += end - start
        if self._size > self.limits.image_bytes:
            most = self.limits.image_bytes // 2**20
            raise NotTaken(413, f"{self._path.name} has more than {most} MB. Send a smaller copy.")
        if len(self._start) < SIGNATURE:
            self._start += data[start : min(end, start + SIGNATURE)]
        self._file.write(data[start:end])

    def part_end(self):
        self._file.close()
        media = image_kind(self._start)
        if media is None:
            kinds = ", ".join(FORMATS[:-1])
            raise NotTaken(415, f"{self._path.name} cannot be read as an image. Send a {kinds} or GIF.")
        self.taken[-1] = self._path, media
        self._file = None

    def end(self):
        self.whole = True

    def check_whole(self):
        if not self.whole or not self.taken:
            raise NotTaken(400, CLOSED_FORM)

    def give_up(self):
        if self._file is not None:
            self._file.close()
        for path, _ in self.taken:
            shutil.rmtree(path.parent, ignore_errors=True)


def image_kind(start: bytes) -> str | None:
    """The type of an image by its first bytes; None where they are of no image that the page takes."""
    if start.startswith(b"RIFF"):
        return "image/webp" if start[8:12] == b"WEBP" else None
    kinds = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"BM": "image/bmp"}
    kinds |= {b"GIF87a": "image/gif", b"GIF89a": "image/gif"}
    return next((kind for mark, kind in kinds.items() if start.startswith(mark)), None)

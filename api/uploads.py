"""Reads a multipart form with one file, whose bytes go to the store as they come and never as a whole into memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api import strict_json
from api.errors import BadRequest, TooLarge, UnknownParameter, WrongMediaType
from storage.blobs import Draft

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"
MAX_FIELDS = 20
# A field's name, value and a file's name, in bytes.
MAX_TEXT = 1024
# A form over the limit is read on and dropped up to this many times the limit, so that its sender learns why.
DRAIN_TIMES = 2


@dataclass(slots=True)
class Form:
    """What a form held beside the bytes of its file. `filename` is None when there was no file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def receive(request: Request, draft: Draft, limit: int) -> Form:
    """Read the request's form and write its file, of at most `limit` bytes, into `draft`.

    Raises:
        WrongMediaType: the body is not declared as a multipart form.
        TooLarge: the file is longer than the limit.
        BadRequest: the form is broken, or its parts are not one file and a few short fields.
        OSError: the store takes no more.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise WrongMediaType(
            "Send the file as a form, with the header 'Content-Type: multipart/form-data; boundary=...'."
        )
    if int(request.headers.get("content-length", "0")) > limit * DRAIN_TIMES:
        raise _too_large(limit)
    reader = _Reader()
    parser = MultipartParser(boundary, reader.callbacks)
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit * DRAIN_TIMES:
                raise _too_large(limit)
            parser.write(chunk)
            data = reader.take()
            reader.file_size += len(data)
            if data and reader.file_size <= limit:
                await run_in_threadpool(draft.write, data)
    except ClientDisconnect:
        raise _broken("its end is missing") from None  # nobody hears it
    except FormParserError as trouble:
        raise _broken(str(trouble).rstrip(".")) from None
    if reader.file_size > limit:
        raise _too_large(limit)
    if not reader.ended:
        raise _broken("its end is missing")
    return reader.form


class _Reader:
    """Follows the parser through the parts of a form."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self.file_size = 0
        self._file: list[bytes] = []
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._in_file = False
        self._value = bytearray()

    @property
    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._take_data,
            "on_part_end": self._end,
            "on_end": self._end_form,
        }

    def take(self) -> bytes:
        """Return what has come of the file since the last call."""
        data = b"".join(self._file)
        self._file.clear()
        return data

    def _begin(self) -> None:
        self._disposition, self._value = b"", bytearray()

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""), "a field's name")
        self._in_file = b"filename" in options
        if not self._name:
            raise _broken("a part has no name")
        if self._name in self.form.fields or (self._name == FILE and self.form.filename is not None):
            raise BadRequest(f"Invalid '{self._name}': it is there twice.", param=self._name)
        if self._in_file:
            if self._name != FILE:
                raise UnknownParameter(f"Unknown parameter: '{self._name}'.", param=self._name)
            self.form.filename = _text(options[b"filename"], FILE)
        elif len(self.form.fields) == MAX_FIELDS:
            raise _broken(f"it has more than {MAX_FIELDS} fields")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._file.append(data[start:end])
            return
        self._value.extend(data[start:end])
        if len(self._value) > MAX_TEXT:
            raise BadRequest(
                f"Invalid '{self._name}': it is longer than {MAX_TEXT} bytes.",
                param=self._name,
                code="string_above_max_length",
            )

    def _end(self) -> None:
        if not self._in_file:
            self.form.fields[self._name] = _text(bytes(self._value), self._name)

    def _end_form(self) -> None:
        self.ended = True


def _text(value: bytes, param: str) -> str:
    if len(value) > MAX_TEXT:
        raise BadRequest(f"Invalid '{param}': it is longer than {MAX_TEXT} bytes.", param=param)
    return strict_json.text(value, param)


def _broken(reason: str) -> BadRequest:
    return BadRequest(f"The form could not be read: {reason}.", code="invalid_form")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The file is larger than {limit} bytes.", param=FILE)

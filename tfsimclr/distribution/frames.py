"""Messages between workers: a JSON object and bytes, over a socket."""

import json
import socket
import struct
from collections.abc import Callable

# Four bytes that only this program sends, the length of the JSON, that of the bytes.
_MAGIC = b"tfs1"
_HEAD = struct.Struct("!4sIQ")
_MAX_JSON = 1 << 24
_PIECE = 1 << 20


class ForeignMessage(ConnectionError):
    """What came is not a message of this program: another program uses the port."""


def send(connection: socket.socket, content: dict, blob: bytes = b"") -> None:
    """Sends one message.

    Args:
        connection: A connected socket. Only one thread may send at a time.
        content: JSON-serialisable.
        blob: Bytes that go with it.

    Raises:
        OSError: If the connection is broken.
    """
    text = json.dumps(content).encode()
    connection.sendall(_HEAD.pack(_MAGIC, len(text), len(blob)) + text)
    if blob:
        connection.sendall(blob)


def receive(
    connection: socket.socket, on_bytes: Callable[[], None] = lambda: None
) -> tuple[dict, bytes] | None:
    """Returns the next message, or None at the end of the connection.

    Args:
        connection: A connected socket.
        on_bytes: Called whenever some bytes of the message arrive.

    Raises:
        ForeignMessage: If another program is at the other end.
        OSError: If the connection breaks in the middle of a message.
    """
    head = _receive_exactly(connection, _HEAD.size, on_bytes, may_end=True)
    if head is None:
        return None
    magic, json_size, blob_size = _HEAD.unpack(head)
    if magic != _MAGIC or json_size > _MAX_JSON:
        raise ForeignMessage("not a message of tfsimclr")
    text = _receive_exactly(connection, json_size, on_bytes)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ForeignMessage("not a message of tfsimclr") from error
    return content, bytes(_receive_exactly(connection, blob_size, on_bytes))


def _receive_exactly(connection, size: int, on_bytes, may_end: bool = False):
    content = bytearray()
    while len(content) < size:
        piece = connection.recv(min(_PIECE, size - len(content)))
        if not piece:
            if may_end and not content:
                return None
            raise ConnectionError("the connection ended in the middle of a message")
        on_bytes()
        content += piece
    return content

"""A line between the two sides of a worker: messages through a socket, tensors through shared memory."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from hal.worker.arena import Reader, Writer

#: How long :meth:`Channel.receive` sleeps at most. The end of a connection wakes it at once; only where a
#: process that the child forked keeps the connection open does its death have to be looked for, so often.
LOOK_US = 20_000
_HEAD = struct.Struct("<Q")
_PIECE_BYTES = 1 << 16


class Channel:
    """One end of a line. One call at a time goes through it.

    A plain read with the kernel's own timeout: waiting by poll costs 15 us more a call (measured here).

    Args:
        end: Of the socket; owned.
        folders: For the arena that is sent.
        prefix: Of its files.

    Attributes:
        writer: Takes tensors to the other side.
        reader: Has those that came.
    """

    def __init__(self, end: socket.socket, folders: Sequence[Path], prefix: str) -> None:
        end.setblocking(True)
        self._fd = end.detach()
        self._held = bytearray()
        self.writer, self.reader = Writer(folders, prefix), Reader()

    @classmethod
    def looking(cls, end: socket.socket, folders: Sequence[Path], prefix: str) -> Channel:
        """One whose :meth:`receive` comes back without a message now and then."""
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, LOOK_US))
        return cls(end, folders, prefix)

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: The other side is gone.
        """
        left = memoryview(_HEAD.pack(len(data)) + data)
        while left:
            left = left[os.write(self._fd, left) :]

    def receive(self) -> bytes | None:
        """The next message; None where none came for a while.

        Raises:
            EOFError: The other side is gone.
            OSError: Likewise.
        """
        while True:
            try:
                piece = os.read(self._fd, _PIECE_BYTES)
            except BlockingIOError:
                return None
            if not piece:
                raise EOFError
            self._held += piece
            if len(self._held) >= _HEAD.size:
                (size,) = _HEAD.unpack_from(self._held)
                if len(self._held) == _HEAD.size + size:
                    data = bytes(self._held[_HEAD.size :])
                    self._held.clear()
                    return data

    def close(self) -> None:
        """Close this end, and let go of its shared memory. A second call does nothing."""
        self.writer.forget()
        self.reader.forget()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


__all__ = ["LOOK_US", "Channel"]

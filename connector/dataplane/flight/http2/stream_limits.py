"""The states of an HTTP/2 connection as `h2` keeps them, within bounds that it does not have by itself."""

from __future__ import annotations

import struct
import sys
from typing import Any

from h2 import frame_buffer
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import Event, WindowUpdated
from h2.exceptions import FrameTooLargeError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.stream import StreamState
from hyperframe.frame import Frame, HeadersFrame

CALLS_MAX = 64  # of one connection at once
HEADERS_MAX = 64 * 2**10  # bytes of a request's head, as HTTP/2 counts them: sixteen tickets
_FRAME_HEAD = 9  # bytes
_WINDOW = struct.Struct(">LBLL")  # a WINDOW_UPDATE: its length and type, flags, the stream, the increment
_WINDOW_LEADS = 4 << 8 | 8
_WINDOW_MAX = 2**31 - 1
_SENDING = frozenset((StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE))  # states of a call whose answer is on its way
_HEAD, _HEAD_BYTES = 15, 64  # of small frames, that a head takes as long as, and one more for each so many bytes of it
_TABLE = 4096  # bytes of headers that we remember for a client: what HTTP/2 begins with
# Of settings those that are known: the library would keep each of 65,536, and look at them all with each frame of them.
_SETTINGS = frozenset(SettingCodes)
frame_buffer.CONTINUATION_BACKLOG = HEADERS_MAX // 2**14  # frames of a head behind its first; the library's: a megabyte


class _Remote(Settings):
    """What a client has set, as far as it is heeded."""

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key in _SETTINGS:
            super().__setitem__(key, min(value, _TABLE) if key == SettingCodes.HEADER_TABLE_SIZE else value)


class _Frames(FrameBuffer):
    """Frames as they come, counted: of some, for streams that have ended, the library tells nothing. It would also keep
    all of a frame, which may say that it is 16 MB, before it says that it is too large.

    `left` is what may be looked at now, in small frames; `more`, whether something lies there that was not.
    """

    count = 0
    left = sys.maxsize
    more = False

    @property
    def rests(self) -> bool:
        """Whether what comes next begins a frame, and none that goes on another."""
        return not (self._data or self._headers_buffer or self._preamble_len)

    def __next__(self) -> Frame:
        self.more = self.left <= 0 and len(self._data) > 0
        if self.more:
            raise StopIteration
        try:
            found = super().__next__()
        except StopIteration:
            if len(self._data) > self.max_frame_size + _FRAME_HEAD:
                raise FrameTooLargeError(f"expected frames of {self.max_frame_size} bytes at most, came more") from None
            raise
        self.count += 1
        self.left -= 1
        if isinstance(found, HeadersFrame):
            self.left -= _HEAD + len(found.data) // _HEAD_BYTES
        return found


class States(H2Connection):
    """The library's. It remembers how streams ended, of the last ones: frames for them may still be under way."""

    MAX_CLOSED_STREAMS = 2**10

    def __init__(self) -> None:
        super().__init__(H2Configuration(client_side=False, header_encoding=None))
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: CALLS_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADERS_MAX,
                SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self.remote_settings = _Remote(client=True)
        self.incoming_buffer = self.came = _Frames(server=True)
        self.decoder.max_header_list_size = HEADERS_MAX

    def receive_data(self, data: Any) -> list[Event]:
        """As the library's. Windows that grow, of which a reader says more than anything else, cost it fifty
        microseconds each: those that can have no other effect are taken from the front of what came."""
        at = 0
        if self.came.rests and self.state_machine.state is ConnectionState.SERVER_OPEN:
            while at + _WINDOW.size <= len(data) and self._grows(*_WINDOW.unpack_from(data, at)):
                at += _WINDOW.size
        if not at:
            return super().receive_data(data)
        self.came.count += at // _WINDOW.size
        return [WindowUpdated(stream_id=0), *(super().receive_data(data[at:]) if at < len(data) else ())]

    def _grows(self, leads: int, _flags: int, number: int, increment: int) -> bool:
        """Take a frame that lets us send more. False where it is another one, or may be an error."""
        if leads != _WINDOW_LEADS or not 0 < increment <= _WINDOW_MAX:
            return False
        of = self.streams.get(number) if number else self
        if of is None or of.outbound_flow_control_window + increment > _WINDOW_MAX:
            return False
        if number and of.state_machine.state not in _SENDING:
            return False
        of.outbound_flow_control_window += increment
        return True

"""How much a client may send, and how long anybody waits for anybody."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one server.

    Attributes:
        body_bytes: the longest body of a request.
        piece_seconds: how long a client may take for the next piece of it.
        keep_alive_seconds: after so long a silence a stream says that it is alive; proxies give up after 30 to 60.
        whole_silence_seconds: a reply that is sent whole begins after so long with a blank, which JSON allows and
            DeepSeek's own API sends too. Until then an error has its own status.
        stuck_seconds: how long a client may take nothing of what is sent; what it asked for is then dropped.
    """

    body_bytes: int = 8 * 1024**2
    piece_seconds: float = 30.0
    keep_alive_seconds: float = 10.0
    whole_silence_seconds: float = 45.0
    stuck_seconds: float = 600.0

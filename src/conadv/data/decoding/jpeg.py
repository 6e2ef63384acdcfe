"""Decode no more rows of a JPEG than needed.

The entropy code of a JPEG can only be read from its beginning, and that is most of the work; what
lies below the crop can be left out all the same. No decoder that Python's packages carry offers
it, but each stops after as many rows as the header says: so the header is made to say fewer. The
pixels above are the same, bit for bit.
"""

from __future__ import annotations

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SEQUENTIAL = (0xC0, 0xC1)
_OTHER_FRAMES = {0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_SCAN = 0xDA
_MARGIN = 16
"""Rows below that still count: colour is interpolated between the rows of a smaller image."""
_WORTHWHILE = 0.95


def first_rows(data: bytes, rows: int) -> bytes:
    """A JPEG of the first rows of a JPEG, or the same bytes where that is no gain or not possible.

    Only for sequential files of one scan. A file that does not end as it should is left alone: the
    decoder has to find out that it is truncated, whichever part of it is wanted.

    Args:
        data: any file.
        rows: that will be looked at; the result has some more.
    """
    if not (data.startswith(_START) and data.endswith(_END)):
        return data
    place = _height_place(data)
    if place is None:
        return data
    wanted, height = rows + _MARGIN, int.from_bytes(data[place : place + 2], "big")
    # A height of 0 means that it stands behind the image.
    if wanted > _WORTHWHILE * height:
        return data
    return b"".join((data[:place], wanted.to_bytes(2, "big"), data[place + 2 :]))


def _height_place(data: bytes) -> int | None:
    """Where the height stands in a sequential file of one scan; None for others."""
    at, place, components = len(_START), None, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _OTHER_FRAMES or length < 2 or at + length + 2 > len(data):
            return None
        if marker in _SEQUENTIAL and length >= 8:
            # Length, precision, height, width, number of components.
            place, components = at + 5, data[at + 9]
        if marker == _SCAN:
            # Files may hold their components one after the other; the rows of the last would be
            # looked for where those of the first go on.
            return place if data[at + 4] == components else None
        at += 2 + length
    return None

# SPDX-License-Identifier: Apache-2.0
"""Reading binary structures that somebody else may have written: bounded, in order, to the last byte. Pure."""

from __future__ import annotations

from typing import Literal

Order = Literal["big", "little"]


class Reader:
    """Takes fields from the front of ``data``. Every method raises :class:`ValueError` past the end.

    ``order`` is that of the numbers: a TPM's structures are big endian, firmware's logs little endian.
    """

    def __init__(self, data: bytes, order: Order) -> None:
        self.data = data
        self.order = order
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if not 0 <= size <= self.left:
            raise ValueError(f"cut short at byte {self.at}: {size} bytes wanted, {self.left} there")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        """The next ``size`` bytes as an unsigned number."""
        return int.from_bytes(self.take(size), self.order)

    def sized(self, width: int, most: int) -> bytes:
        """A length of ``width`` bytes, then so many bytes; :class:`ValueError` for more than ``most``."""
        size = self.number(width)
        if size > most:
            raise ValueError(f"a field of {size} bytes at byte {self.at}, at most {most} are allowed")
        return self.take(size)

    def finish(self) -> None:
        """:class:`ValueError` unless everything has been taken."""
        if self.left:
            raise ValueError(f"{self.left} bytes behind the end")

"""What a file might take on a phone: arithmetic from multiply-adds and bytes, never a measurement."""

from __future__ import annotations

from dataclasses import dataclass

FLOOR_US = 100.0
BANDWIDTH = 25e9
ASSUMED = (
    "an estimate, not measured: the longest of 100 µs to call a model at all, its multiply-adds at the rate that a published "
    "latency of a much larger net implies, and its bytes at an assumed 25 GB/s; a net this small may well reach less of either"
)


@dataclass(frozen=True)
class Phone:
    """A phone's arithmetic at one precision.

    Attributes:
        macs_per_second: derived from `source`, a published latency.
    """

    name: str
    format: str
    precisions: tuple[str, ...]
    macs_per_second: float
    source: str

    def microseconds(self, *, macs: int, size: int) -> float:
        """An estimate for a file of so many bytes.

        Example:
            >>> PHONES[0].microseconds(macs=10**6, size=30_000)
            100.0
        """
        return round(max(FLOOR_US, macs / self.macs_per_second * 1e6, size / BANDWIDTH * 1e6), 1)


PHONES = (
    Phone(
        "iPhone 14 Pro (A16), neural engine",
        "coreml",
        ("float16", "palettized", "int8_weights", "int4"),
        2.7e12,
        "Apple's documentation: ResNet50 in float16, 1.52 ms",
    ),
    Phone(
        "iPhone 15 Pro (A17 Pro), neural engine",
        "coreml",
        ("int8",),
        5.3e12,
        "Apple's documentation: ResNet50 with int8 weights and activations, 0.77 ms",
    ),
    Phone(
        "Pixel 3a, one thread of its CPU",
        "executorch",
        ("float32",),
        5.5e9,
        "XNNPACK's published latency: MobileNetV2 in float32, 55 ms",
    ),
)


def estimates(*, format: str, precision: str, macs: int, size: int) -> dict[str, float]:
    """Microseconds by the names of phones that a published latency of this format and precision says something of.

    Example:
        >>> estimates(format="executorch", precision="float32", macs=5_500_000, size=200_000)
        {'Pixel 3a, one thread of its CPU': 1000.0}
    """
    return {
        phone.name: phone.microseconds(macs=macs, size=size)
        for phone in PHONES
        if phone.format == format and precision in phone.precisions
    }

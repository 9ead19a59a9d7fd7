"""`measurements.json`: what was measured beyond what a bundle needs to run, for reports."""

from __future__ import annotations

from pathlib import Path

import msgspec

from alula.core import Candidate, Ratio, Recipe, Roofline, Scenario, Share, Throughput, share_of_peak
from alula.errors import BundleError
from alula.graphs import Products
from alula.measure import Latency, ServerRate
from alula.quantization import work_of

__all__ = ["MEASUREMENTS_NAME", "FinalRounds", "Measurements", "RaceRounds", "read_measurements"]

MEASUREMENTS_NAME = "measurements.json"


class FinalRounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate of the last comparison: its raw rounds, and its speed over the baseline's.

    Attributes:
        rate_per_s: queries served within the limit, in the server scenario, where there was time for it.
    """

    candidate: Candidate
    throughput: Throughput
    speedup: Ratio
    rate_per_s: float | None = None


class RaceRounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate of the race: its samples per second in every lap that it took part in."""

    candidate: Candidate
    rounds_per_s: tuple[float, ...]


class Measurements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of `measurements.json`.

    Attributes:
        scenario: what was to be fast.
        finalists: of the last comparison, by throughput; in the server scenario those whose rate is known
            come first, by it.
        latency: of the chosen candidate, in the single-stream scenario.
        server: of the chosen candidate, in the server scenario.
        stages_s: wall seconds of the parts of the search, by their names, in order.
        race: the candidates that raced for a place in the last comparison.
        disturbance: what disturbed the search before the last comparison, in words.
        roofline: the machine's peaks; None where they were not measured.
        products: the work of one sample by kind and role of layers; none where it could not be counted.
    """

    scenario: Scenario = "offline"
    finalists: tuple[FinalRounds, ...] = ()
    latency: Latency | None = None
    server: ServerRate | None = None
    stages_s: dict[str, float] = {}
    race: tuple[RaceRounds, ...] = ()
    disturbance: tuple[str, ...] = ()
    roofline: Roofline | None = None
    products: tuple[Products, ...] = ()

    def of_peak(self, recipe: Recipe, per_s: float) -> Share:
        """Return how much of the machine's peak a recipe's samples per second were."""
        return share_of_peak(per_s, work_of(self.products, recipe), self.roofline)


def read_measurements(bundle: Path) -> Measurements:
    """Return what a bundle has of this; nothing but defaults for a bundle without.

    Raises:
        BundleError: the file is damaged.
    """
    path = bundle / MEASUREMENTS_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measurements)
    except FileNotFoundError:
        return Measurements()
    except msgspec.MsgspecError as error:
        raise BundleError(path, f"It is damaged: {error}. Copy the bundle again.") from error

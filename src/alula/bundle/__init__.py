"""The delivered folder: written in one step, verified byte by byte, started where it is right."""

from alula.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Activation,
    Baseline,
    Deployed,
    FileRecord,
    FolderRun,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from alula.bundle.measurements import MEASUREMENTS_NAME, FinalRounds, Measurements, read_measurements
from alula.bundle.read import BundleWarning, Running, fitted, read_manifest, start, verify
from alula.bundle.write import GOLDEN_NAME, JOURNAL_NAME, is_bundle, rewrite_manifest, write_bundle

__all__ = [
    "GOLDEN_NAME",
    "JOURNAL_NAME",
    "MANIFEST_NAME",
    "MEASUREMENTS_NAME",
    "SCHEMA_VERSION",
    "Activation",
    "Baseline",
    "BundleWarning",
    "Deployed",
    "FileRecord",
    "FinalRounds",
    "FolderRun",
    "Manifest",
    "Measurements",
    "Running",
    "decode_manifest",
    "encode_manifest",
    "fitted",
    "is_bundle",
    "read_manifest",
    "read_measurements",
    "rewrite_manifest",
    "start",
    "verify",
    "write_bundle",
]

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
from alula.bundle.read import BundleWarning, Running, fitted, read_manifest, start, verify
from alula.bundle.write import GOLDEN_NAME, JOURNAL_NAME, rewrite_manifest, write_bundle

__all__ = [
    "GOLDEN_NAME",
    "JOURNAL_NAME",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Activation",
    "Baseline",
    "BundleWarning",
    "Deployed",
    "FileRecord",
    "FolderRun",
    "Manifest",
    "Running",
    "decode_manifest",
    "encode_manifest",
    "fitted",
    "read_manifest",
    "rewrite_manifest",
    "start",
    "verify",
    "write_bundle",
]

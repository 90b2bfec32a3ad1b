"""Features on disk, and the half of a reference on disk that judges; the half that trains is `irdm.reference`."""

from irdm.store.builder import SHARD_ROWS, build_store, store_identity
from irdm.store.engine import Engine, plain
from irdm.store.reader import FeatureStore, StoredRows
from irdm.store.real import real_identity
from irdm.store.reference import StoredReference

__all__ = [
    "SHARD_ROWS",
    "Engine",
    "FeatureStore",
    "StoredReference",
    "StoredRows",
    "build_store",
    "plain",
    "real_identity",
    "store_identity",
]

"""Features on disk: `build_store` makes a store, `FeatureStore` reads it."""

from irdm.store.builder import SHARD_ROWS, build_store, store_address, store_identity, weights_identity
from irdm.store.reader import FeatureStore, StoredRows

__all__ = [
    "SHARD_ROWS",
    "FeatureStore",
    "StoredRows",
    "build_store",
    "store_address",
    "store_identity",
    "weights_identity",
]

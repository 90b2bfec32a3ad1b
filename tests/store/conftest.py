"""Pictures and a store of them."""

from tiny_store import built, copied, folder  # noqa: F401  (fixtures)

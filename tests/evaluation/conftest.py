"""Pictures and a reference of them."""

from tiny_reference import built, copied, pictures  # noqa: F401  (fixtures)

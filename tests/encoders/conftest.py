"""Small random encoders of the panel, written and loaded as real ones are."""

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def loaded(folder):
    """name -> (small entry, its encoder, loaded from disk), each made once."""
    from tiny_panel import write_tiny  # which needs the panel's packages

    from irdm.encoders.families import load_encoder

    made = {}

    def get(name):
        if name not in made:
            entry = write_tiny(name, folder)
            made[name] = entry, load_encoder(entry, folder)
        return made[name]

    return get

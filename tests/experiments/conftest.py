"""What libraries leave in the folder for temporary files goes where pytest tidies up.

Every builder of tfds leaves an empty ``tmp*tfds`` there, made to look for its description in a bucket.
"""

import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
def _tidied(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield

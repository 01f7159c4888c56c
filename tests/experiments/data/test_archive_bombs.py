"""Small archives of arrays that would fill the memory are refused before they are unpacked."""

import io
import math
import tracemalloc
import zipfile

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data.config import DataConfig
from experiments.data.memory import read
from tests.experiments.data import tiny_data

MOST = 20_000 * 64 * 64 * 3


def header(shape, version=(1, 0)):
    """How an array of bytes begins in a file."""
    file = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version](file, about)
    return file.getvalue()


def zeros(archive, name, start, size, method=zipfile.ZIP_DEFLATED):
    """A member of so many zeros after its start."""
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    with archive.open(info, "w") as file:
        file.write(start)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def refused(folder, message):
    with pytest.raises(UserError, match=f"pacs_64.npz cannot be read .*{message}"):
        read(DataConfig(name="pacs", folder=folder))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["x.npy", "x", "other.npy"])
def test_zeros_that_unpack_to_more_than_the_data_are_refused(tmp_path, name):
    """A member that holds what its header says, whatever its name."""
    path = tiny_data.write_pacs(tmp_path)
    size = MOST + 2**20 - MOST % 2**20
    with zipfile.ZipFile(path, "a") as archive:
        zeros(archive, name, header((size,)), size)
    assert path.stat().st_size < 3_000_000
    tracemalloc.start()
    refused(tmp_path, f"{name} would unpack to [0-9]* bytes, expected at most {MOST + 10_000}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("shape", [(2**40, 64, 64, 3), (2**62, 2**62)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_header_that_promises_too_much_is_refused(tmp_path, shape, version):
    path = tiny_data.write_pacs(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header(shape, version))
    refused(tmp_path, f"x.npy would unpack to {math.prod(shape)} bytes, expected at most")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress_are_refused(tmp_path, method):
    """Python unpacks these without a bound."""
    path = tiny_data.write_pacs(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        zeros(archive, "x.npy", header((2**20,)), 2**20, method)
    refused(tmp_path, f"x.npy is compressed by method {method}, not deflated")


@pytest.mark.parametrize(
    "content", [b"text", b"\x93NUMPY\x03\x00" + bytes(8), b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535]
)
def test_members_that_are_no_arrays_are_refused(tmp_path, content):
    path = tiny_data.write_pacs(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", content)
    refused(tmp_path, "")

"""What the object storages of Airflow do with files that are written in pieces: the operators depend on it."""

from __future__ import annotations

import random

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from stores import MULTIPART_BLOCK

# More than two parts.
CONTENT = random.Random(1).randbytes(2 * MULTIPART_BLOCK + 2**20)


def write(file, content=CONTENT):
    for start in range(0, len(content), 2**20):
        file.write(content[start : start + 2**20])


def write_and_fail(file, content):
    with file:
        write(file, content)
        raise InterruptedError


def test_a_file_of_several_parts_is_renamed_on_s3_when_it_is_whole(s3):
    path = ObjectStoragePath(f"{s3.url}reports/") / "a.xlsx"
    with path.fs.open(f"{path.path}.part", "wb", block_size=MULTIPART_BLOCK) as file:
        write(file)
        assert s3.keys() == []
        assert s3.unfinished_uploads() == ["reports/a.xlsx.part"]
    assert s3.keys() == ["reports/a.xlsx.part"]

    path.fs.mv(f"{path.path}.part", path.path)

    assert s3.keys() == ["reports/a.xlsx"]
    assert s3.read("reports/a.xlsx") == CONTENT
    with path.open("rb") as file:
        assert file.read() == CONTENT


@pytest.mark.parametrize("size", [2**20, len(CONTENT)], ids=["one part", "several parts"])
def test_a_write_on_s3_that_an_error_ends_leaves_a_visible_object(s3, size):
    """The block closes the file, and fsspec uploads what was written so far, under the name that was opened."""
    path = ObjectStoragePath(f"{s3.url}a.xlsx")

    with pytest.raises(InterruptedError):
        write_and_fail(path.fs.open(path.path, "wb", block_size=MULTIPART_BLOCK), CONTENT[:size])

    assert s3.read("a.xlsx") == CONTENT[:size]


@pytest.mark.parametrize("size", [2**20, len(CONTENT)], ids=["one part", "several parts"])
def test_a_write_on_s3_without_autocommit_can_be_discarded(s3, size):
    path = ObjectStoragePath(f"{s3.url}a.xlsx")

    with path.fs.open(path.path, "wb", block_size=MULTIPART_BLOCK, autocommit=False) as file:
        write(file, CONTENT[:size])
    assert s3.unfinished_uploads() == ["a.xlsx"]
    file.discard()

    assert s3.keys() == s3.unfinished_uploads() == []


def test_memory_is_empty_and_takes_files(memory):
    path = ObjectStoragePath("memory://reports/a.xlsx")
    assert memory.find("/") == []
    with path.fs.open(f"{path.path}.part", "wb") as file:
        write(file)

    path.fs.mv(f"{path.path}.part", path.path)

    assert memory.find("/") == ["/reports/a.xlsx"]
    assert memory.cat("/reports/a.xlsx") == CONTENT

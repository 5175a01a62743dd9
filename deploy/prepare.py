"""Before the first run on several machines: `python deploy/prepare.py s3://bucket/results`.

Makes the bucket, and the block `remote-file-system/normascope-results` on the Prefect server at PREFECT_API_URL, which
PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK names: results of steps are kept there, so that a step which one machine has done is cached for
all. The block holds the place alone; credentials are in the environment of each process. The same again changes nothing.
"""

import sys

import fsspec
from prefect.filesystems import RemoteFileSystem

BLOCK = "normascope-results"


def prepare(results: str) -> None:
    """Make the bucket and the block of a place such as s3://bucket/results."""
    fs, path = fsspec.url_to_fs(results)
    fs.makedirs(path.split("/")[0], exist_ok=True)
    RemoteFileSystem(basepath=results).save(BLOCK, overwrite=True)


if __name__ == "__main__":
    prepare(sys.argv[1])

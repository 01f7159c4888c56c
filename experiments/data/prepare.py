"""Prepares data sets with the builders of TensorFlow Datasets. They need TensorFlow; training does not."""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError, require
from experiments.data.catalogue import DataSet
from experiments.data.prepared import known, place


def prepare(name: str, folder: Path, archives: Path | None, *, trust_archives: bool = False) -> None:
    """Writes a data set as ArrayRecord files, which training finds with ``--data.folder FOLDER``.

    Beside them, archives.json holds the sha256 of the archives that they were read from.

    Args:
      name: of the data set, as in the configs.
      folder: of all data sets of tfds; it gets a folder for this one.
      archives: folder with the archives as they are published, to be read in place of downloading them.
      trust_archives: also read archives whose sha256 is not the one that tfds has recorded.

    Raises:
      UserError: if TensorFlow is missing, an archive is missing or not the published one, or the disk refuses.
    """
    data_set = known(name)
    target = place(data_set, folder)
    if (target / "dataset_info.json").exists():
        print(f"{name} is already in {target}")
        return
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError as error:
        message = f"preparing {name} needs TensorFlow, training does not: pip install '.[prepare]' ({error})"
        raise UserError(message) from error
    from tensorflow_datasets.core.download import extractor, util

    try:
        _build(data_set, folder, archives, trust_archives)
    except (OSError, tf.errors.OpError, util.DownloadError, extractor.ExtractError) as error:
        hint = "" if archives else "; with --archives it reads archives on disk in place of downloading them"
        raise UserError(f"cannot prepare {name} in {target}: {error}{hint}") from error
    print(f"wrote {target}")


def _build(data_set: DataSet, folder: Path, archives: Path | None, trust_archives: bool) -> None:
    """Runs the builder of tfds."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import DownloadConfig

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    name, version = str(data_set.tfds_name).split(":")
    # By its class: tfds.builder prefers files, of another version or config, and imports the classes that they name.
    make: Any = tfds.builder_cls(name)
    builder = make(version=version, data_dir=folder, file_format="array_record")
    recorded = dict(builder.url_infos)
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    require(archives is not None or not manual, f"{data_set.name} cannot be downloaded, give --archives.\n{manual}")
    folder.mkdir(parents=True, exist_ok=True)
    # Extracted in a folder of its own: tfds goes by the name of an archive, and different data sets share names.
    with tempfile.TemporaryDirectory(prefix="extracted-", dir=folder) as extracted:
        try:
            if archives is not None:
                builder.url_infos.update(_checked(recorded, archives, trust_archives))
            builder.download_and_prepare(download_config=DownloadConfig(manual_dir=archives, extract_dir=extracted))
            read = {url: info.checksum for url, info in builder.url_infos.items()}
            Path(builder.data_dir, "archives.json").write_text(json.dumps(read, indent=2) + "\n")
        finally:
            builder.url_infos.update(recorded)  # tfds keeps them for all builders of this process


def _checked(recorded: dict[str, Any], archives: Path, trust: bool) -> dict[str, Any]:
    """The size and checksum of each archive, by the URL that it is published at."""
    from tensorflow_datasets.core.download.checksums import compute_url_info

    actual = {}
    for url, info in recorded.items():
        archive = archives / (info.filename or url.rsplit("/", 1)[-1])
        require(archive.is_file(), f"there is no {archive}: --archives must hold what is published at {url}")
        actual[url] = compute_url_info(archive)
        if actual[url].checksum != info.checksum:
            differs = f"{archive} has sha256 {actual[url].checksum}, and {info.checksum} is recorded for {url}"
            require(trust, f"{differs}: it is damaged or another file. If you know what it is, give --trust-archives")
            print(f"{differs}: trusted")
    return actual

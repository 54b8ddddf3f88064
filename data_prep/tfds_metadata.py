"""TFDS metadata of a folder of records, so that `tfds.builder_from_directory(folder)` reads it."""

import os
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from kmax_tf.data import datasets

FILES = "dataset_info.json", "features.json"


def write(folder: str) -> None:
    """Writes dataset_info.json and features.json from the dataset.json of a folder of records.

    The records have the schema in kmax_tf/data/records/example.py. The label map stays an encoded
    PNG because it has 8 or 16 bits; `example.parse` decodes it. If a split lacks a file, neither
    is there, and a line says so.
    """
    dataset = datasets.load(folder)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template="{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
        dataset_name=re.sub(r"\W", "_", dataset.name).lower(),
        filetype_suffix="tfrecord",
    )
    splits = []
    for name in datasets.split_names(folder):
        size = datasets.read_split(folder, name)
        paths = template.replace(split=name).sharded_filepaths(size.num_shards)
        try:
            num_bytes = sum(tf.io.gfile.stat(path).length for path in paths)
        except tf.errors.NotFoundError:
            print(f"{folder}: split {name} lacks files, so TFDS cannot read it; convert it again")
            for stale in filter(tf.io.gfile.exists, (os.path.join(folder, f) for f in FILES)):
                tf.io.gfile.remove(stale)
            return
        splits.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=size.shard_lengths(),
                num_bytes=num_bytes,
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(),
        split_infos=splits,
        filename_template=template,
        description=f"Panoptic segmentation, {dataset.num_classes} classes, see dataset.json.",
        check_data=False,
    )


def _features() -> tfds.features.FeaturesDict:
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "image": {
                "encoded": tfds.features.Image(),
                "format": text,
                "filename": text,
                "id": text,
                "height": np.int64,
                "width": np.int64,
            },
            "panoptic": {"encoded": text},
            "segment": tfds.features.Sequence(
                {"id": np.int64, "category_id": np.int64, "is_crowd": np.int64, "area": np.int64}
            ),
        }
    )

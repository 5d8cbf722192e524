"""Data: read, validate, split without leakage, normalise, encode, augment, and serve in batches."""

from __future__ import annotations

from onward.data.array_rows import ArrayRows, load_npy, open_npy
from onward.data.audio import Spectrogram, load_audio_folder, read_wav
from onward.data.augment import (
    Augmentation,
    Compose,
    Crop,
    Cutout,
    Erase,
    Flip,
    Mixup,
    Noise,
    Rotate,
    Shift,
    parse_augmentation,
)
from onward.data.batches import Batch, Batches
from onward.data.builtin import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from onward.data.casting import as_dtype
from onward.data.column_fit import ColumnOptions
from onward.data.dataset import Dataset, Task
from onward.data.idx import load_idx, load_idx_folder, read_idx
from onward.data.images import load_image_folder, read_image
from onward.data.iterables import IterableBatches, batches_of
from onward.data.loader import Loader
from onward.data.normalization import Normalization
from onward.data.npz import load_npz
from onward.data.parquet_rows import ParquetRows, open_parquet
from onward.data.preparation import NumberPreparation, Preparation, TextPreparation
from onward.data.registry import Source, available, resolve
from onward.data.rows import PartRows, Rows, SampleRows
from onward.data.split import Splits, folds, split
from onward.data.stream import Kind, StreamLoader
from onward.data.stream_fit import fit_in_one_pass
from onward.data.subwords import Subwords
from onward.data.table import load_table
from onward.data.table_preparation import TablePreparation
from onward.data.text import load_texts
from onward.data.vocabulary import PADDING, UNKNOWN, Vocabulary, tokenize
from onward.data.whole import WholeBatches, load_batches

__all__ = [
    "PADDING",
    "UNKNOWN",
    "ArrayRows",
    "Augmentation",
    "Batch",
    "Batches",
    "ColumnOptions",
    "Compose",
    "Crop",
    "Cutout",
    "Dataset",
    "Erase",
    "Flip",
    "IterableBatches",
    "Kind",
    "Loader",
    "Mixup",
    "Noise",
    "Normalization",
    "NumberPreparation",
    "ParquetRows",
    "PartRows",
    "Preparation",
    "Rotate",
    "Rows",
    "SampleRows",
    "Shift",
    "Source",
    "Spectrogram",
    "Splits",
    "StreamLoader",
    "Subwords",
    "TablePreparation",
    "Task",
    "TextPreparation",
    "Vocabulary",
    "WholeBatches",
    "as_dtype",
    "available",
    "batches_of",
    "fit_in_one_pass",
    "folds",
    "load_audio_folder",
    "load_batches",
    "load_breast_cancer",
    "load_diabetes",
    "load_digits",
    "load_idx",
    "load_idx_folder",
    "load_image_folder",
    "load_iris",
    "load_npy",
    "load_npz",
    "load_table",
    "load_texts",
    "load_wine",
    "open_npy",
    "open_parquet",
    "parse_augmentation",
    "read_idx",
    "read_image",
    "read_wav",
    "resolve",
    "split",
    "tokenize",
]

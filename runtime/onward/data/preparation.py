"""From inputs as they are read to inputs as a network takes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from onward.data.casting import as_dtype
from onward.data.dataset import Array, Dataset
from onward.data.normalization import Normalization
from onward.data.subwords import Subwords
from onward.data.table_preparation import TablePreparation
from onward.data.vocabulary import Vocabulary
from onward.errors import DataError

__all__ = ["NumberPreparation", "Preparation", "TextPreparation"]

PIXEL = 255.0
_MAX_TOKENS = 1 << 20


@final
@dataclass(frozen=True, eq=False)
class NumberPreparation:
    """Numbers as read → float32: divided by `divisor`, then normalised.

    Attributes:
        dtype: of the numbers as read; floats of any size are read as float32.
        divisor: 255 for pixels, else 1.
        normalization: along axis 1, measured after the division; None: none.
    """

    dtype: np.dtype[Any]
    divisor: float = 1.0
    normalization: Normalization | None = None

    @property
    def empty(self) -> bool:
        """Whether it leaves float32 as it is."""
        return self.dtype == np.float32 and self.divisor == 1 and self.normalization is None

    def apply(self, array: Array, what: str = "the input") -> Array:
        """float32 of the array's shape; `what` is its name in messages.

        Raises:
            DataError: the array is not of the type or of the channels that this is for.
        """
        raw = as_dtype(array, self.dtype, what)
        scaled = raw.astype(np.float32, copy=False)
        if self.divisor != 1:
            scaled = scaled / np.float32(self.divisor)
        return scaled if self.normalization is None else self.normalization.apply(scaled)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `Preparation.from_json` reads back."""
        content: dict[str, Any] = {"dtype": self.dtype.name, "divisor": self.divisor}
        if self.normalization is not None:
            content |= {"mean": self.normalization.mean.tolist(), "std": self.normalization.std.tolist()}
        return content


@final
@dataclass(frozen=True, eq=False)
class TextPreparation:
    """Texts → token numbers, int64 [N, tokens].

    Attributes:
        encoder: the words or parts of words that are known, by number.
        tokens: how many a text has; longer ones are cut, shorter ones padded.
    """

    encoder: Vocabulary | Subwords
    tokens: int

    def encode(self, texts: Collection[str]) -> Array:
        """int64 of shape [N, tokens]."""
        return self.encoder.encode(texts, self.tokens)


@final
@dataclass(frozen=True, eq=False)
class Preparation:
    """What happens to the inputs of a data set before a network takes them.

    Attributes:
        numbers: by input name.
        text: of the one text input.
        columns: the columns of a table, in the order of the numbers in the input.
        table: of the columns of a table; there are then no other numbers.
    """

    numbers: Mapping[str, NumberPreparation] = field(default_factory=dict)
    text: TextPreparation | None = None
    columns: tuple[str, ...] | None = None
    table: TablePreparation | None = None

    @staticmethod
    def fit(train: Dataset, *, normalise: bool = True, untouched: Collection[str] = ()) -> Preparation:
        """Measure the numeric inputs of the training part.

        Bytes of shape [N, C, H, W] are pixels and are divided by 255. With `normalise`, axis 1 of each input
        of numbers [N, C, ...] gets zero mean and unit variance.

        Args:
            train: the training part alone, since other parts must not leak into a model.
            normalise: whether to normalise.
            untouched: inputs that the network takes as they are: token numbers, bytes.
        """
        if train.table:
            found = TablePreparation.fit(train, scale=normalise)
            return Preparation(columns=found.names, table=found)
        numbers: dict[str, NumberPreparation] = {}
        for name, array in train.inputs.items():
            if array.dtype.kind not in "biuf" or name in untouched or name.endswith(".target"):
                continue
            dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
            divisor = PIXEL if dtype == np.uint8 and array.ndim == 4 else 1.0
            plain = NumberPreparation(dtype, divisor)
            normalization = None
            if normalise and array.ndim > 1 and dtype.kind != "b":
                scaled = train.with_inputs({name: plain.apply(array)})
                normalization = Normalization.fit(scaled, name)
            numbers[name] = NumberPreparation(dtype, divisor, normalization)
        return Preparation(numbers, None, train.columns)

    def apply(self, dataset: Dataset) -> Dataset:
        """The data set as a network takes it; inputs without a preparation stay as they are.

        Raises:
            DataError: an input is not of the kind that this was measured on.
        """
        if self.table is not None:
            return self.table.apply(dataset)
        if dataset.text_inputs and self.text is not None:
            dataset = self.text.encoder.apply_to(dataset, self.text.tokens)
        chosen = self._aimed(dataset)
        if not chosen:
            return dataset
        changed = {name: p.apply(dataset.inputs[name], f"input {name!r}") for name, p in chosen.items()}
        return dataset.with_inputs(dataset.inputs | changed)

    def renamed(self, names: Mapping[str, str]) -> Preparation:
        """The same under other input names; names that are not in the mapping stay."""
        return Preparation(
            {names.get(name, name): each for name, each in self.numbers.items()},
            self.text,
            self.columns,
            None if self.table is None else self.table.renamed(names.get(self.table.input, self.table.input)),
        )

    def to_json(self) -> dict[str, Any]:
        """What metadata hold of it; the words of a vocabulary are an entry of their own.

        `from_json` reads it back.
        """
        content: dict[str, Any] = {"inputs": {name: p.to_json() for name, p in self.numbers.items()}}
        if self.columns is not None:
            content["columns"] = list(self.columns)
        if self.table is not None:
            content["table"] = self.table.to_json()
        if self.text is not None:
            content["text"] = {"tokens": self.text.tokens, **self.text.encoder.description()}
        return content

    @staticmethod
    def from_json(content: Any, words: tuple[str, ...] | None = None) -> Preparation:
        """The preparation that `to_json` wrote.

        Args:
            content: what `to_json` gave.
            words: the words of the vocabulary, by token number from 2.

        Raises:
            DataError: it is something else.
        """
        try:
            numbers = {str(name): _numbers_from(name, each) for name, each in content["inputs"].items()}
            columns = content.get("columns")
            if columns is not None and not all(isinstance(column, str) for column in columns):
                raise TypeError("columns must be names")
            text = content.get("text")
            found = None if text is None else _text_from(text, words)
            table = None if (own := content.get("table")) is None else TablePreparation.from_json(own)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the preparation of inputs cannot be read ({error})") from error
        return Preparation(numbers, found, None if columns is None else tuple(columns), table)

    def _aimed(self, dataset: Dataset) -> dict[str, NumberPreparation]:
        """Preparations by the data set's names: equal ones, or the only one on either side."""
        have = [n for n, a in dataset.inputs.items() if a.dtype.kind in "biuf" and not n.endswith(".target")]
        if len(self.numbers) == 1 and len(have) == 1:
            return {have[0]: next(iter(self.numbers.values()))}
        if missing := [name for name in self.numbers if name not in have]:
            raise DataError(
                f"data set {dataset.name!r} has no input {missing[0]!r}; it has {', '.join(dataset.inputs)}"
            )
        return dict(self.numbers)


def _numbers_from(name: str, content: Any) -> NumberPreparation:
    dtype = np.dtype(content["dtype"])
    divisor = float(content["divisor"])
    if dtype.kind not in "biuf" or not divisor > 0 or not np.isfinite(divisor):
        raise ValueError(f"dtype {dtype}, divisor {divisor}")
    known = "mean" in content or "std" in content
    return NumberPreparation(
        dtype, divisor, Normalization.from_json({"input": name, **content}) if known else None
    )


def _text_from(content: Any, words: tuple[str, ...] | None) -> TextPreparation:
    tokens = int(content["tokens"])
    if not 0 < tokens <= _MAX_TOKENS:
        raise ValueError(f"{tokens} tokens")
    encoder: Vocabulary | Subwords
    if "tokenizer" in content:
        encoder = Subwords(content["tokenizer"])
    elif words is None:
        raise ValueError("there are no words")
    else:
        encoder = Vocabulary(words, content["words"])
    return TextPreparation(encoder, tokens)

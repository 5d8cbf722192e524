"""The configuration's tables have the options of what they describe, under the same names."""

from __future__ import annotations

import dataclasses
import inspect
from typing import get_args

import pytest
from pydantic import BaseModel

from onward import train
from onward.engine.engines import EngineName
from onward.runs.config import LossTable, OptimizerTable, RunConfig, ScheduleTable


@pytest.mark.parametrize(
    ("table", "classes"),
    [
        (OptimizerTable, (train.SGD, train.Adam, train.AdamW, train.RMSprop, train.Adagrad)),
        (
            LossTable,
            (
                train.CrossEntropy,
                train.BinaryCrossEntropy,
                train.MSE,
                train.L1,
                train.Huber,
                train.KLDivergence,
            ),
        ),
        (
            ScheduleTable,
            (train.Constant, train.Step, train.Exponential, train.Cosine, train.ReduceOnPlateau),
        ),
    ],
)
def test_tables_name_the_options_of_their_classes(table: type[BaseModel], classes: tuple[type, ...]) -> None:
    options = {field.name for each in classes for field in dataclasses.fields(each)}
    assert set(table.model_fields) - {"name"} == options


def test_engines_are_those_of_sessions() -> None:
    field = RunConfig.model_fields["engine"]
    assert get_args(field.annotation) == get_args(EngineName)
    assert "engine" in inspect.signature(train.Trainer).parameters

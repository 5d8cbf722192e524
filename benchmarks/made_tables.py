"""Tables like those that people have, made: missing cells, rare levels, long tails, dates, useless columns.

What is predicted follows from the columns through thresholds, products and noise, so that neither a linear
model nor a table of means finds all of it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["Rows", "adult_like", "titanic_like", "write_csv"]

Rows = tuple[list[str], list[list[str]]]
"""A header, and rows of cells; what is missing is an empty cell, or a question mark."""


def titanic_like(rows: int = 891, seed: int = 0) -> Rows:
    """Passengers: who survives depends on sex, class, age, fare and the size of the family."""
    rng = np.random.default_rng(seed)
    header = ["PassengerId", "Pclass", "Name", "Sex", "Age", "SibSp", "Parch", "Ticket", "Fare", "Cabin"]
    header += ["Embarked", "Booked", "Survived"]
    found = []
    for i in range(rows):
        pclass = int(rng.choice([1, 2, 3], p=[0.24, 0.21, 0.55]))
        female = rng.random() < 0.35
        age = float(np.clip(rng.normal(38 - 4.5 * pclass, 13), 0.4, 80))
        siblings, parents = int(rng.poisson(0.5)), int(rng.poisson(0.35))
        fare = float(np.exp(rng.normal(4.4 - 0.75 * pclass, 0.6))) * (1 + 0.3 * (siblings + parents))
        deck = "ABCDEFG"[min(6, int(rng.integers(0, 3) + 2 * (pclass - 1)))]
        port = str(rng.choice(["S", "C", "Q"], p=[0.72, 0.19, 0.09]))
        day = int(rng.integers(0, 100))
        family = siblings + parents
        score = 2.6 * female - 0.9 * (pclass - 2) + 1.6 * (age < 12) - 0.02 * max(age - 40, 0)
        score += 0.5 * np.log1p(fare) - 2.6 - (1.3 if family > 3 else 0) + (0.6 if port == "C" else 0)
        score += -1.1 if female and pclass == 3 and fare > 25 else 0
        survived = int(rng.random() < 1 / (1 + np.exp(-1.3 * score)))
        booked = np.datetime64("1912-01-01") + day
        found.append(
            [
                *(
                    str(i + 1),
                    str(pclass),
                    f"Person {int(rng.integers(10**9))}",
                    "female" if female else "male",
                ),
                "" if rng.random() < 0.2 else f"{age:.1f}",
                *(str(siblings), str(parents), f"T{int(rng.integers(10**6))}", f"{fare:.4f}"),
                "" if rng.random() < 0.75 else f"{deck}{int(rng.integers(1, 6))}",
                "" if rng.random() < 0.01 else port,
                *(str(booked), str(survived)),
            ]
        )
    return header, found


def adult_like(rows: int = 12_000, seed: int = 0) -> Rows:
    """People and whether they earn much: many categories with rare levels, gains that are mostly 0."""
    rng = np.random.default_rng(seed)
    header = ["age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation"]
    header += ["relationship", "sex", "capital_gain", "capital_loss", "hours_per_week", "country"]
    header += ["since", "income"]
    education = ["HS-grad", "Some-college", "Bachelors", "Masters", "Doctorate", "11th", "Preschool"]
    years = dict(zip(education, (9, 10, 13, 14, 16, 7, 1), strict=True))
    jobs = [f"job-{i}" for i in range(14)]
    pay = dict(zip(jobs, np.random.default_rng(99).normal(0, 0.8, 14), strict=True))
    countries = ["United-States", "Mexico", *(f"country-{i}" for i in range(38))]
    share = np.array([0.9, 0.03, *([0.07 / 38] * 38)])
    found = []
    for _ in range(rows):
        age = int(np.clip(rng.gamma(8, 5), 17, 90))
        school = str(rng.choice(education, p=[0.34, 0.25, 0.19, 0.09, 0.03, 0.09, 0.01]))
        married = rng.random() < 1 / (1 + np.exp(-(age - 30) / 8))
        male = rng.random() < 0.67
        job = str(rng.choice(jobs))
        hours = int(np.clip(rng.normal(40, 12), 1, 99))
        gain = int(np.exp(rng.normal(8, 1.2))) if rng.random() < 0.08 else 0
        loss = int(rng.normal(1900, 300)) if rng.random() < 0.05 else 0
        work = str(rng.choice(["Private", "Self-emp", "Gov", "Never-worked"], p=[0.74, 0.12, 0.13, 0.01]))
        since = np.datetime64("2000-01-01") + int(rng.integers(0, 8000))
        score = -4.2 + 0.32 * (years[school] - 9) + 2.0 * married + pay[job] + 0.3 * male
        score += (
            0.9 * (hours > 45) - 0.9 * (hours < 30) + 0.05 * (min(age, 50) - 25) - 0.04 * max(age - 58, 0)
        )
        score += 4.0 * (gain > 5000) - 0.6 * (0 < gain <= 3000) + 1.1 * (loss > 1800)
        score += 0.8 * (work == "Self-emp" and years[school] > 12) + 0.6 * (not married and pay[job] > 0.6)
        income = rng.random() < 1 / (1 + np.exp(-1.5 * score))
        relation = ("Husband" if male else "Wife") if married else str(rng.choice(["Own-child", "Single"]))
        found.append(
            [
                str(age),
                "?" if rng.random() < 0.05 else work,
                str(int(np.exp(rng.normal(12, 0.5)))),
                *(
                    school,
                    str(years[school]),
                    "Married" if married else str(rng.choice(["Never", "Divorced"])),
                ),
                "?" if rng.random() < 0.05 else job,
                *(relation, "Male" if male else "Female", str(gain), str(loss)),
                "" if rng.random() < 0.02 else str(hours),
                "?" if rng.random() < 0.02 else str(rng.choice(countries, p=share / share.sum())),
                *(str(since), ">50K" if income else "<=50K"),
            ]
        )
    return header, found


def write_csv(path: Path, rows: Rows) -> Path:
    """Write a table as a CSV file."""
    header, cells = rows
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(cells)
    return path


def as_columns(rows: Rows) -> dict[str, Sequence[str]]:
    """A table by column."""
    header, cells = rows
    return {name: [row[i] for row in cells] for i, name in enumerate(header)}

"""What several ranks compute is what one does: they are threads here, each with a trainer of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.ops.harness import in_double
from tests.verify.test_zoo_training import SMALL, networks

from onward.data import Dataset, Loader
from onward.errors import ConfigError, StorageError, TrainingError
from onward.graph import Array
from onward.nn import zoo
from onward.parallel import Group, ThreadCommunicator, run_ranks
from onward.train import Clip, CrossEntropy, Trainer
from onward.train.callbacks import Callback, Checkpoints
from onward.train.metrics import Metric
from onward.train.optimizers import SGD
from onward.train.run import Run

SAMPLES = 22
"""With batches of 7, the last one has one sample: of three ranks two have none of it."""
NORMALIZED = sorted(
    name
    for name in SMALL
    if any(node.op_type == "BatchNormalization" for node in zoo.build(name, **SMALL[name]).model.graph)
)
PLAIN = sorted(set(SMALL) - set(NORMALIZED))

Fitted = tuple[dict[str, Array], list[dict[str, float]], dict[str, float | Array]]


def samples(trainer: Trainer, count: int = SAMPLES) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    (spec,) = trainer.inputs
    shape = (count, *(d for d in spec.shape[1:] if isinstance(d, int)))
    integers = spec.dtype.name.startswith("INT") or "int" in str(spec.dtype).lower()
    x = rng.integers(0, 2, shape) if integers else rng.standard_normal(shape).astype(np.float32)
    return x, rng.integers(0, 2, count)


def fitted(
    name: str, communicator: ThreadCommunicator | None, engine: str = "compiled", **options: Any
) -> Fitted:
    """Weights, history and evaluation after two epochs."""
    fit: dict[str, Any] = options.pop("fit", {})
    options.setdefault("optimizer", SGD(learning_rate=0.05, momentum=0.9))
    options.setdefault("loss", "cross_entropy")
    metrics = options.pop("metrics", ["accuracy", "top3" if name == "lenet5" else "f1"])
    trainer = Trainer(
        zoo.build(name, **SMALL[name]),
        metrics=metrics,
        engine=engine,  # type: ignore[arg-type]
        threads=1,
        parallel=communicator,
        bucket_bytes=2048,
        **options,
    )
    x, y = samples(trainer)
    trainer.fit((x, y), validation=(x[:13], y[:13]), batch_size=7, progress=False, **{"epochs": 2, **fit})
    return trainer.weights(), trainer.history.rows, trainer.evaluate((x, y), batch_size=5)


def same_figures(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-5, err_msg=key)


def compare(found: Fitted, wanted: Fitted) -> None:
    for key, array in wanted[0].items():
        np.testing.assert_allclose(found[0][key], array, rtol=1e-4, atol=2e-6, err_msg=key)
    for row, expected in zip(found[1], wanted[1], strict=True):
        same_figures(row, expected)
    same_figures(found[2], wanted[2])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_a_network_trains_on_ranks_as_on_one(name: str, size: int) -> None:
    """Dropout included: its mask is by the place of a sample in the whole batch."""
    found = run_ranks(size, lambda ranks: fitted(name, ranks))
    compare(found[0], fitted(name, None))
    for each in found[1:]:
        for key, array in found[0][0].items():
            np.testing.assert_array_equal(each[0][key], array, err_msg=key)
        assert each[1] == found[0][1]


@pytest.mark.parametrize(
    ("name", "size", "engine"),
    [
        ("audiocnn", 2, "compiled"),
        ("audiocnn", 3, "interpreter"),
        pytest.param("resnet20", 2, "compiled", marks=pytest.mark.slow),
        pytest.param("resnet20", 3, "interpreter", marks=pytest.mark.slow),
        pytest.param("resnet18", 2, "compiled", marks=pytest.mark.slow),
    ],
)
def test_synchronised_batch_normalization_is_by_the_whole_batch(name: str, size: int, engine: str) -> None:
    """One epoch: rounding at the kinks of deep networks grows from step to step."""
    options: dict[str, Any] = {"engine": engine, "fit": {"epochs": 1}, "metrics": []}
    options["optimizer"] = SGD(learning_rate=1e-3)
    found = run_ranks(size, lambda ranks: fitted(name, ranks, synchronise=True, **options))
    wanted = fitted(name, None, **options)
    for key, array in wanted[0].items():
        np.testing.assert_allclose(found[1][0][key], array, rtol=2e-3, atol=2e-4, err_msg=key)
    own = run_ranks(size, lambda ranks: fitted(name, ranks, **options))[0]
    running = [key for key in wanted[0] if "mean" in key or "var" in key]
    assert running
    # by shares, statistics are others by much more than rounding, which may be none
    far = [
        np.abs(own[0][k] - wanted[0][k]).max() > 10 * np.abs(found[0][0][k] - wanted[0][k]).max()
        for k in running
    ]
    assert np.mean(far) > 0.5


@pytest.mark.parametrize("name", networks(NORMALIZED))
def test_a_synchronised_step_is_that_of_one_process(name: str) -> None:
    """The first step in float64: its gradients (at a learning rate of 1) and statistics, to ten digits.

    Several steps in float32 would not tell a fault from rounding in the deepest of these networks: fifty
    normalised layers on a batch of seven have gradients of more than 40 in their first weights, and what is
    2e-15 after one step of resnet50 at a learning rate of 1e-3 is 5e-8 after four, even in float64.
    """

    def stepped(
        communicator: ThreadCommunicator | None, synchronise: bool, engine: str = "interpreter"
    ) -> dict[str, Array]:
        model, _ = in_double(zoo.build(name, **SMALL[name]).model, {})
        trainer = Trainer(
            model,
            optimizer=SGD(learning_rate=1.0),
            engine=engine,  # type: ignore[arg-type]
            threads=1,
            parallel=communicator,
            synchronise=synchronise,
        )
        before = {key: array.copy() for key, array in trainer.weights().items()}
        x, y = samples(trainer, 7)
        trainer.fit((x.astype(np.float64), y), batch_size=7, progress=False)
        return {key: array - before[key] for key, array in trainer.weights().items()}

    wanted = stepped(None, False)
    found = run_ranks(2, lambda ranks: stepped(ranks, True, "compiled"))
    own = run_ranks(2, lambda ranks: stepped(ranks, False))[0]
    statistics = [key for key in wanted if "running" in key]
    assert statistics
    for keys in (statistics, sorted(set(wanted) - set(statistics))):
        # some gradients are 0 but for rounding, such as those of what the next normalization takes away
        largest = max(np.abs(wanted[key]).max() for key in keys)
        for changes in found:
            for key in keys:
                assert changes[key].dtype == np.float64
                np.testing.assert_allclose(
                    changes[key], wanted[key], rtol=1e-10, atol=1e-10 * largest, err_msg=key
                )
        assert max(np.abs(own[key] - wanted[key]).max() for key in keys) > 1e-3 * largest


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"accumulate": 3, "loss": CrossEntropy(ignore_index=1), "metrics": ["accuracy"]},
        {"clip": Clip(norm=0.05)},
        {"loss": CrossEntropy(ignore_index=1), "metrics": []},
        {"fit": {"sample_weight": np.linspace(0, 2, SAMPLES).astype(np.float32)}},
        {"engine": "interpreter", "accumulate": 2, "clip": Clip(norm=0.05)},
        {"optimizer": "adam"},
    ],
    ids=["window", "window of weighted", "clip", "ignored", "sample weights", "interpreter", "adam"],
)
def test_means_clipping_and_windows_are_over_all_ranks(options: dict[str, Any]) -> None:
    compare(run_ranks(2, lambda ranks: fitted("mlp", ranks, **options))[1], fitted("mlp", None, **options))


def test_gradients_are_exchanged_only_for_updates() -> None:
    def exchanged(accumulate: int) -> int:
        def work(ranks: ThreadCommunicator) -> int:
            trainer = Trainer(
                zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks, accumulate=accumulate
            )
            trainer.fit(samples(trainer, 24), batch_size=4, progress=False)
            assert len(trainer.times) == 2
            assert trainer.times[0].waiting <= trainer.times[0].communicating
            return trainer.times[0].exchanged

        return run_ranks(2, work)[0]

    weights = sum(a.size for a in Trainer(zoo.build("mlp", **SMALL["mlp"])).weights().values())
    six, two = exchanged(1), exchanged(3)
    # the rest is the few numbers that every step exchanges: one weight more of each part in a window
    assert six - 4 * 4 * weights < two + 6 * 16
    assert two < six / 2


def test_times_are_those_of_the_last_run() -> None:
    """Three epochs, then one: a third of the bytes, and no more waiting than there were seconds of steps."""

    def work(ranks: ThreadCommunicator) -> tuple[int, int]:
        trainer = Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks)
        sent = []
        for epochs in (3, 1):
            trainer.fit(samples(trainer, 24), batch_size=4, progress=False, epochs=epochs)
            sent.append(trainer.times[ranks.rank].exchanged)
            assert 0 <= trainer.times[ranks.rank].waiting <= trainer.times[ranks.rank].steps
        return sent[0], sent[1]

    for three, one in run_ranks(2, work):
        assert three == 3 * one > 0


def test_a_search_for_the_learning_rate_is_of_all_ranks() -> None:
    def found(ranks: ThreadCommunicator | None) -> tuple[float, ...]:
        trainer = Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks)
        return trainer.find_learning_rate(samples(trainer, 24), batch_size=4, steps=12, end=0.1).losses

    first, second = run_ranks(2, found)
    assert first == second
    np.testing.assert_allclose(first, found(None), rtol=1e-5)
    with pytest.raises(ConfigError, match="a batch of 1 samples leaves nothing to do for some of 2 ranks"):
        failing(lambda trainer, rank: trainer.find_learning_rate(samples(trainer), batch_size=1))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    """Stopped inside of a window of batches and of an epoch: sums and metrics of all ranks are kept."""

    class Halt(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 5:
                writer.write(run)
                run.stop("enough", now=True)

    writer = Checkpoints(tmp_path / "run.ckpt")
    options = {"accumulate": 4, "fit": {"callbacks": [Halt()], "epochs": 3}}

    def on(size: int, **options: Any) -> Fitted:
        if size == 1:
            return fitted("mlp", None, **options)
        return run_ranks(size, lambda ranks: fitted("mlp", ranks, **options))[-1]

    on(before, **options)
    found = on(after, accumulate=4, fit={"resume": writer.path, "epochs": 3})
    compare(found, fitted("mlp", None, accumulate=4, fit={"epochs": 3}))


def failing(change: Callable[[Trainer, int], Any], size: int = 2, **options: Any) -> Any:
    def work(ranks: ThreadCommunicator) -> None:
        trainer = Trainer(
            zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks, metrics=options.get("metrics", ())
        )
        change(trainer, ranks.rank)

    return run_ranks(size, work)


def test_ranks_that_disagree_are_named() -> None:
    def other_data(trainer: Trainer, rank: int) -> None:
        x, y = samples(trainer)
        trainer.fit((x + (rank == 1), y), batch_size=4, progress=False)

    def other_epochs(trainer: Trainer, rank: int) -> None:
        trainer.fit(samples(trainer), batch_size=4, epochs=2 + (rank == 1), progress=False)

    with pytest.raises(ConfigError, match=r"ranks disagree on the data: rank 0 has .* rank 1 has"):
        failing(other_data)
    with pytest.raises(ConfigError, match=r"ranks disagree on the number of epochs: .* ranks? 1.* has 3"):
        failing(other_epochs)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"model": zoo.mlp(input_shape=(784,), hidden=(31,))}, "the shape of parameter"),
        ({"model": zoo.mlp(input_shape=(784,), hidden=(30, 30))}, "the training step"),
        ({"model": zoo.mlp(input_shape=(784,), hidden=(30,), activation="tanh")}, "the training step"),
        ({"loss": CrossEntropy(label_smoothing=0.1)}, "the training step"),
        ({"clip": Clip(norm=1.0)}, "the training step"),
        ({"optimizer": SGD(0.2)}, "the optimizer"),
        ({"accumulate": 2}, "the training step"),
        ({"metrics": ["accuracy"]}, "the metrics"),
        ({"seed": 1}, "the order seed"),
        ({"synchronise": True}, "the synchronisation of batch normalization"),
        ({"exchange": "bfloat16"}, "the type in which gradients travel"),
        ({"shard": True}, "whether the optimizer's state is divided"),
        ({"batch_size": 6}, "the batch size"),
        ({"resume": "some.ckpt"}, "whether the run is resumed"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_ranks_with_other_options_are_named(own: dict[str, Any], named: str) -> None:
    def work(ranks: ThreadCommunicator) -> None:
        options = {"model": zoo.mlp(input_shape=(784,), hidden=(30,)), "optimizer": SGD(0.1)}
        options |= own if ranks.rank == 1 else {}
        fit = {"batch_size": options.pop("batch_size", 4), "resume": options.pop("resume", None)}
        trainer = Trainer(options.pop("model"), threads=1, parallel=ranks, **options)
        trainer.fit((np.zeros((8, 784), np.float32), np.arange(8)), progress=False, **fit)

    with pytest.raises(ConfigError, match=f"ranks disagree on {named}.*rank 0 has .*rank 1 has"):
        run_ranks(2, work)


def test_ranks_with_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = threading.local()
    monkeypatch.setattr("onward.train.agreement.current_versions", lambda: {"numpy": versions.numpy})

    def work(ranks: ThreadCommunicator) -> None:
        versions.numpy = f"2.{ranks.rank}"
        trainer = Trainer(zoo.mlp(input_shape=(4,)), threads=1, parallel=ranks)
        trainer.fit((np.zeros((8, 4), np.float32), np.arange(8)), batch_size=4, progress=False)

    with pytest.raises(ConfigError, match=r"the version of numpy: rank 0 has '2.0', rank 1 has '2.1'"):
        run_ranks(2, work)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", [{}, {"shard": True}], ids=["whole", "shard"])
def test_where_sums_are_exact_ranks_are_one_process_to_the_bit(size: int, options: dict[str, Any]) -> None:
    """Gradients of small integers over powers of two have no rounding, whatever the order of their sums."""

    def trained(ranks: ThreadCommunicator | None) -> dict[str, Array]:
        layers = zoo.mlp(4, input_shape=(5,), hidden=())
        trainer = Trainer(
            layers, "mse", SGD(2.0**-6), threads=1, parallel=ranks, **(options if ranks else {})
        )
        state = {k: np.round(a * 16) / 16 if a.dtype == np.float32 else a for k, a in trainer.state.items()}
        trainer.load_state(state)
        rng = np.random.default_rng(0)
        x = rng.integers(-3, 4, (16, 5)).astype(np.float32)
        trainer.fit((x, rng.integers(-2, 3, (16, 4)).astype(np.float32)), batch_size=8, progress=False)
        return trainer.weights()

    wanted = trained(None)
    for found in run_ranks(size, trained):
        assert {k: a.tobytes() for k, a in found.items()} == {k: a.tobytes() for k, a in wanted.items()}


@pytest.mark.parametrize("options", [{}, {"shard": True}], ids=["whole", "shard"])
@pytest.mark.parametrize(("drift", "alike"), [(1e-6, False), (0.1, False), (1e-6, True)])
def test_rounding_of_unlike_processors_is_taken_back(
    drift: float, alike: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of 8 and of 16 lanes sum a norm in another order. Else weights that differ are a fault."""

    class Drift(Callback):
        def on_step_end(self, run: Run) -> None:
            name = run.layout.parameters[0]
            if run.group is not None and run.group.rank == 1:
                run.replace_state(
                    {**run.session.state, name: run.session.state[name] * np.float32(1 + drift)}
                )

    monkeypatch.setattr("onward.train.trainer.rounding_alike", lambda group, threads: alike)

    def trained(ranks: ThreadCommunicator) -> dict[str, Array]:
        trainer = Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks, **options)
        trainer.fit(samples(trainer, 8), batch_size=8, progress=False, callbacks=[Drift()])
        return trainer.weights()

    if alike or drift > 0.01:
        with pytest.raises(
            TrainingError, match="the weights of rank 1 are no longer those of rank 0, after step 1"
        ):
            run_ranks(2, trained)
        return
    first, second = run_ranks(2, trained)
    assert {k: a.tobytes() for k, a in first.items()} == {k: a.tobytes() for k, a in second.items()}


@pytest.mark.parametrize(("when", "steps"), [("begin", 0), ("step", 4), ("last step", 6), ("epoch", 6)])
def test_a_stop_that_one_rank_asks_for_ends_all(when: str, steps: int) -> None:
    """An epoch has six steps. That after which the run is to end at once is the third, or the last."""
    asked = {"step": 3, "last step": 6}.get(when)

    class Stop(Callback):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def on_train_begin(self, run: Run) -> None:
            if self.rank == 1 and when == "begin":
                run.stop("enough")

        def on_step_end(self, run: Run) -> None:
            self.steps = run.step
            if self.rank == 1 and run.step == asked:
                run.stop("enough", now=True)

        def on_epoch_end(self, run: Run) -> None:
            if self.rank == 1 and when == "epoch":
                run.stop("enough")

    def work(ranks: ThreadCommunicator) -> tuple[str, int]:
        trainer = Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks)
        hook = Stop(ranks.rank)
        hook.steps = 0
        trainer.fit(samples(trainer, 24), batch_size=4, epochs=9, progress=False, callbacks=[hook])
        return trainer.stopped, hook.steps

    assert run_ranks(2, work) == [("another rank asked for it", steps), ("enough", steps)]


def test_batches_too_small_for_the_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 3, or start fewer ranks"):
        failing(lambda trainer, rank: trainer.fit(samples(trainer), batch_size=2, progress=False), 3)


def test_nan_on_one_rank_is_told_with_the_rank() -> None:
    def work(trainer: Trainer, rank: int) -> None:
        x, y = samples(trainer)
        x[3] = 3e38  # without shuffling the first batch's last sample: rank 1 has it
        loader = Loader(Dataset({"input": x}, y, task="classification"), 4, shuffle=False)
        trainer.fit(loader, progress=False)

    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 1, step 1; rank 1, step 1: node"):
        failing(work)


def test_an_error_of_the_first_rank_is_everybodys(tmp_path: Path) -> None:
    def work(trainer: Trainer, rank: int) -> None:
        trainer.fit(samples(trainer), batch_size=4, resume=tmp_path / "none.ckpt", progress=False)

    def each(ranks: ThreadCommunicator) -> str:
        with pytest.raises(StorageError) as raised:
            work(Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks), ranks.rank)
        return str(raised.value)

    first, second = run_ranks(2, each)
    assert first == second
    assert "none.ckpt" in first


def test_a_metric_that_cannot_be_joined_says_so() -> None:
    class Odd(Metric):
        name = "odd"

        def update(self, outputs: Any, targets: Any) -> None: ...

        def result(self) -> float:
            return 0.0

        def reset(self) -> None: ...

        def state(self) -> dict[str, Array]:
            return {}

        def load_state(self, state: dict[str, Array]) -> None: ...

    with pytest.raises(ConfigError, match="Odd has no method `join`"):
        failing(lambda t, rank: t.fit(samples(t), batch_size=4, progress=False), metrics=[Odd()])


def test_what_ranks_say_to_each_other() -> None:
    def work(ranks: ThreadCommunicator) -> tuple[Any, ...]:
        group = Group(ranks)
        block = np.arange(3.0) * (ranks.rank + 1)
        group.share(block)
        found = group.gather({"rank": ranks.rank}), group.any(ranks.rank == 2), group.sum(np.array(2)), block
        with pytest.raises(ConfigError, match="rank 1: wrong"):
            group.together(lambda: wrong() if ranks.rank == 1 else 0)
        group.close()
        return found

    def wrong() -> int:
        raise ConfigError("wrong")

    for everyone, some, total, block in run_ranks(3, work):
        assert everyone == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert some
        assert total == 6
        np.testing.assert_array_equal(block, np.arange(3.0))


def test_shares_are_consecutive_and_as_equal_as_can_be() -> None:
    data = Dataset({"x": np.arange(22.0)[:, None]}, np.arange(22) % 3, task="classification")
    loader = Loader(data, 7, seed=3)
    whole = [batch.indices for batch in loader.epoch(2)]
    parts = [list(loader.shares(2, 0, rank, 3)) for rank in range(3)]
    for number, indices in enumerate(whole):
        mine = [part[number] for part in parts]
        counts = [0 if b.share is None else b.share.count for b in mine]
        assert max(counts) - min(counts) <= 1
        np.testing.assert_array_equal(
            np.concatenate([b.indices[:c] for b, c in zip(mine, counts, strict=True)]), indices
        )
    evaluated = [list(loader.dealt(rank, 3)) for rank in range(3)]
    assert [len(part) for part in evaluated] == [2, 1, 1]

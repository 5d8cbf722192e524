"""Gradients that are summed piece by piece: as bfloat16, and where the optimizer's state is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tests.parallel.test_ranks import Fitted, compare, failing, fitted, samples
from tests.verify.test_zoo_training import SMALL

from onward.autodiff import Pieces
from onward.engine import Session
from onward.errors import ConfigError, ShapeError
from onward.graph import Array, Builder
from onward.nn import zoo
from onward.parallel import Group, ThreadCommunicator, run_ranks
from onward.train import Clip, Trainer
from onward.train.callbacks import Callback, Checkpoints
from onward.train.optimizers import SGD, Adam, RMSprop
from onward.train.optimizers import Group as Options
from onward.train.run import Run

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 2, 2), "d": ()}


def summed(
    given: list[dict[str, Array]], element: Any, engine: Any, bucket_bytes: int
) -> list[dict[str, Array]]:
    """What each rank gets where it gave these gradients."""

    def work(ranks: ThreadCommunicator) -> dict[str, Array]:
        group = Group(ranks)
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sums")
        g = Builder(graph)
        inputs = {name: g.input(name, ir.DataType.FLOAT, shape) for name, shape in SHAPES.items()}
        gradients = {name: g.Mul(value, 2.0) for name, value in inputs.items()}
        sums = Pieces(*group.pieces, ranks.rank, ranks.size, element, bucket_bytes)(g, gradients)
        for name, value in sums.items():
            g.output(value, f"{name}.sum")
        session = Session(ir.Model(graph, ir_version=10), engine=engine, threads=1)
        found = session.run(given[ranks.rank])
        group.close()
        return {name: found[f"{name}.sum"] for name in SHAPES}

    return run_ranks(len(given), work)


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
@pytest.mark.parametrize(("ranks", "bucket_bytes"), [(2, 1 << 20), (3, 1), (5, 64)])
def test_sums_are_of_rounded_numbers_in_the_order_of_ranks(
    ranks: int, bucket_bytes: int, engine: str
) -> None:
    rng = np.random.default_rng(0)
    given = [
        {
            name: (rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20, shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(ranks)
    ]
    found = summed(given, "bfloat16", engine, bucket_bytes)
    exact = summed(given, "float32", engine, bucket_bytes)
    u = 2.0**-8
    for name in SHAPES:
        own = [2 * each[name] for each in given]
        total = plain = np.zeros_like(own[0])
        for each in own:
            total = total + each.astype(ml_dtypes.bfloat16).astype(np.float32)
            plain = plain + each
        wanted = total.astype(ml_dtypes.bfloat16).astype(np.float32)
        doubles = np.array(own, np.float64)
        bound = (u * (1 + u) + ranks * 2.0**-23) * np.abs(doubles).sum(0) + u * np.abs(doubles.sum(0))
        for each, whole in zip(found, exact, strict=True):
            assert each[name].tobytes() == wanted.tobytes()
            assert whole[name].tobytes() == plain.tobytes()
            assert (np.abs(each[name] - doubles.sum(0)) <= bound).all()
    assert any((found[0][name] != exact[0][name]).any() for name in SHAPES)


def test_numbers_that_are_not_finite_reach_all_ranks() -> None:
    given = [{name: np.ones(shape, np.float32) for name, shape in SHAPES.items()} for _ in range(2)]
    given[1]["b"][3], given[1]["d"] = np.nan, np.float32(np.inf)
    for each in summed(given, "bfloat16", "compiled", 1 << 20):
        assert np.isnan(each["b"]).tolist() == [i == 3 for i in range(7)]
        assert np.isposinf(each["d"])
        assert (each["a"] == 4).all()


def bytes_equal(found: Fitted, wanted: Fitted) -> None:
    for key, array in wanted[0].items():
        assert found[0][key].tobytes() == array.tobytes(), key
    assert found[1] == wanted[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adam", "accumulate": 3},
        {"optimizer": SGD(0.05, momentum=0.9, groups=(Options("*.bias", 0.5, 0.1),), weight_decay=0.01)},
        {"optimizer": RMSprop(0.01, momentum=0.5), "clip": Clip(value=0.01)},
        {"optimizer": "adagrad", "engine": "interpreter"},
        {"optimizer": SGD(learning_rate=0.1)},
    ],
    ids=["momentum", "adam in windows", "groups", "clipped", "interpreter", "no state"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_divided_optimizer_state_changes_no_bit(options: dict[str, Any], size: int) -> None:
    whole = run_ranks(size, lambda ranks: fitted("mlp", ranks, **options))
    for each in run_ranks(size, lambda ranks: fitted("mlp", ranks, shard=True, **options)):
        bytes_equal(each, whole[0])


@pytest.mark.parametrize(
    "name", ["lenet5", "textcnn", "audiocnn", pytest.param("resnet20", marks=pytest.mark.slow)]
)
def test_networks_train_with_divided_state_and_rounded_gradients(name: str) -> None:
    options: dict[str, Any] = {"fit": {"epochs": 1}, "metrics": [], "optimizer": Adam(1e-3)}
    wanted = run_ranks(2, lambda ranks: fitted(name, ranks, **options))[0]
    for each in run_ranks(2, lambda ranks: fitted(name, ranks, shard=True, **options)):
        bytes_equal(each, wanted)
    options["optimizer"] = SGD(1e-3)
    wanted = run_ranks(2, lambda ranks: fitted(name, ranks, **options))[0]
    first, second = run_ranks(2, lambda ranks: fitted(name, ranks, exchange="bfloat16", **options))
    bytes_equal(first, second)
    start = Trainer(zoo.build(name, **SMALL[name])).weights()
    far = sum(float(np.square(wanted[0][k] - start[k]).sum()) for k in start)
    off = sum(float(np.square(wanted[0][k] - first[0][k]).sum()) for k in start)
    assert 0 < off < (3 * 2.0**-8) ** 2 * far


def test_clipping_by_norm_is_over_all_ranks_pieces() -> None:
    options = {"clip": Clip(norm=0.05)}
    found = run_ranks(3, lambda ranks: fitted("mlp", ranks, shard=True, **options))
    compare(found[1], fitted("mlp", None, **options))
    bytes_equal(found[0], found[2])


def test_bfloat16_halves_what_is_sent() -> None:
    def sent(**options: Any) -> int:
        def work(ranks: ThreadCommunicator) -> int:
            trainer = Trainer(zoo.build("mlp", **SMALL["mlp"]), threads=1, parallel=ranks, **options)
            trainer.fit(samples(trainer, 24), batch_size=4, progress=False)
            return trainer.times[0].exchanged

        return run_ranks(2, work)[0]

    weights = sum(a.size for a in Trainer(zoo.build("mlp", **SMALL["mlp"])).weights().values())
    single, half = sent(), sent(exchange="bfloat16")
    assert 0 <= single - 6 * 4 * weights < 6 * 64
    assert 0 <= half - 6 * 2 * weights < 6 * 64
    assert sent(shard=True) - single < 6 * 16
    assert 0 <= sent(shard=True, exchange="bfloat16") - 6 * 3 * weights < 6 * 64


def test_each_rank_holds_its_part_of_the_state_alone() -> None:
    def held(size: int, shard: bool) -> list[int]:
        def work(ranks: ThreadCommunicator) -> list[int]:
            trainer = Trainer(
                zoo.build("mlp", **SMALL["mlp"]), optimizer="adam", threads=1, parallel=ranks, shard=shard
            )
            trainer.fit(samples(trainer, 8), batch_size=4, progress=False)
            assert all(t.peak_bytes > 1 << 20 for t in trainer.times)
            return [t.optimizer_bytes for t in trainer.times]

        return run_ranks(size, work)[0]

    weights = sum(a.size for a in Trainer(zoo.build("mlp", **SMALL["mlp"])).weights().values())
    assert held(3, shard=False) == [8 * weights] * 3
    parts = held(3, shard=True)
    assert sum(parts) == 8 * weights
    assert max(parts) <= 8 * -(-weights // 3)


@pytest.mark.parametrize(
    ("before", "after"), [((2, True), (1, False)), ((3, True), (2, True)), ((1, False), (3, True))]
)
def test_checkpoints_are_whole(tmp_path: Path, before: tuple[int, bool], after: tuple[int, bool]) -> None:
    """Stopped inside of a window; resumed on another number of ranks, with divided state or without."""

    class Halt(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.step == 6:
                writer.write(run)
                run.stop("enough", now=True)

    writer = Checkpoints(tmp_path / "run.ckpt")

    def on(size: int, shard: bool, **options: Any) -> Fitted:
        options |= {"optimizer": "adam", "accumulate": 2}
        if size == 1:
            return fitted("mlp", None, **options)
        return run_ranks(size, lambda ranks: fitted("mlp", ranks, shard=shard, **options))[-1]

    on(*before, fit={"callbacks": [Halt()], "epochs": 3})
    found = on(*after, fit={"resume": writer.path, "epochs": 3})
    compare(found, on(1, False, fit={"epochs": 3}))


def test_checkpoints_of_divided_and_whole_state_are_the_same_bytes(tmp_path: Path) -> None:
    for shard in (False, True):
        path = tmp_path / f"{shard}.ckpt"
        run_ranks(
            3,
            lambda ranks, shard=shard, path=path: fitted(
                "mlp", ranks, shard=shard, optimizer="adam", fit={"callbacks": [Checkpoints(path)]}
            ),
        )
    assert (tmp_path / "True.ckpt").read_bytes() == (tmp_path / "False.ckpt").read_bytes()


def test_what_needs_whole_gradients_is_refused() -> None:
    def make(**options: Any) -> Any:
        return run_ranks(
            2, lambda ranks: Trainer(zoo.mlp(input_shape=(4,)), parallel=ranks, shard=True, **options)
        )

    def halved(g: Builder, gradients: Any) -> Any:
        return {name: g.Mul(d, 0.5) for name, d in gradients.items()}

    class Whole(SGD.__base__):  # type: ignore[name-defined, misc]
        def slots(self) -> dict[str, float]:
            return {}

        def of_elements(self, parameter: str) -> None:
            return None

        def operator(self) -> tuple[str, dict[str, Any]]:
            return "SGDUpdate", {}

    with pytest.raises(ConfigError, match="transform halved sees whole gradients"):
        make(gradient_transforms=[halved])
    with pytest.raises(ConfigError, match="Whole has to see whole parameters"):
        make(optimizer=Whole())
    with pytest.raises(ConfigError, match="too few to be divided among 2 ranks"):
        run_ranks(2, lambda ranks: Trainer(tiny(), "mse", trainable=["w"], parallel=ranks, shard=True))


def tiny() -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="scaled")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 1))
    g.output(g.Mul(x, g.initializer("w", np.ones(1, np.float32))), "y")
    return ir.Model(graph, ir_version=10)


def test_options_that_differ_or_do_not_exist_are_named() -> None:
    with pytest.raises(ConfigError, match="exchange must be float32 or bfloat16, got 'half'"):
        Trainer(zoo.mlp(input_shape=(4,)), exchange="half")  # type: ignore[arg-type]

    class Five:
        """A communicator that has what it has to, and no more."""

        def __init__(self, ranks: ThreadCommunicator) -> None:
            self.rank, self.size = ranks.rank, ranks.size
            self.all_reduce_start, self.all_reduce_wait = ranks.all_reduce_start, ranks.all_reduce_wait
            self.broadcast, self.barrier = ranks.broadcast, ranks.barrier

    def with_five(ranks: ThreadCommunicator) -> None:
        trainer = Trainer(zoo.mlp(input_shape=(4,)), parallel=Five(ranks), threads=1)
        trainer.fit((np.zeros((4, 4), np.float32), np.zeros(4, int)), batch_size=4, progress=False)
        Trainer(zoo.mlp(input_shape=(4,)), parallel=Five(ranks), exchange="bfloat16")

    with pytest.raises(ConfigError, match="Five has no method all_to_all_start"):
        run_ranks(2, with_five)

    def unlike(trainer: Trainer, rank: int) -> None:
        trainer._bucket_bytes += rank
        trainer.fit(samples(trainer), batch_size=4, progress=False)

    with pytest.raises(ConfigError, match="ranks disagree on the size of buckets of gradients"):
        failing(unlike)


def test_operands_have_to_fit_their_block() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="block")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, (4,))
    with pytest.raises(ShapeError, match="4 elements from 3 on do not fit a block of 6"):
        g.onward.StartCall(x, function="f", size=6, offset=3)

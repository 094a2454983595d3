"""Batches cross in shared memory as they are, and stay so while anything holds a part of them."""

from __future__ import annotations

import copy
import gc
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sslzoo.batch import Batch, Padded
from sslzoo.callbacks.rehearsal import dataset_of, first_batch
from sslzoo.data.batch_memory import BatchMemory
from sslzoo.data.loader import EvalLoader, TrainLoader
from sslzoo.data.sampler import KeyedSampler

DTYPES = (
    *(torch.uint8, torch.bool, torch.int16, torch.int64, torch.uint16, torch.float64),
    *(torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn),
)


class Made:
    """Batches that are a function of their indices."""

    def __init__(self, make: Callable[[int], Any], number: int) -> None:
        self.make, self.number = make, number

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, index: list[int]) -> Any:
        return self.make(index[0])


def loader(
    make: Callable[[int], Any], workers: int = 1, number: int = 24, **given: Any
) -> DataLoader[Any]:
    return DataLoader(
        Made(make, number),  # type: ignore[arg-type]
        batch_size=1,
        num_workers=workers,
        collate_fn=BatchMemory(),
        **given,
    )


def blocks(loader: DataLoader[Any]) -> int:
    memory: Any = loader.collate_fn
    return len(memory._read)


def numbers(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def one(seed: int) -> Batch:
    return Batch([numbers(seed, 8, 3, 16, 16), numbers(~seed, 8, 5)], torch.arange(seed, seed + 8))


def sizes(seed: int) -> Batch:
    """Of sequences of very different lengths."""
    length = 1 + seed * 7919 % 3000
    return Batch([Padded(numbers(seed, 4, length), torch.full((4,), length))], torch.arange(4))


def every_kind(seed: int) -> dict[str, Any]:
    x = numbers(seed, 4, 6)
    shared = numbers(seed, 3).share_memory_()
    return {
        "types": [torch.arange(5).to(dtype) for dtype in DTYPES],
        "twice": (x, x),
        "strides": (x.t(), x[:, ::2], x[2:], x.expand(2, 4, 6)),
        "empty": (x[:0], torch.tensor(3.5), x.new_zeros(0)),
        "others": (None, "words", 7, shared, x.conj(), torch.complex(x, x).conj()),
        "gradient": torch.nn.Parameter(x),
        "sparse": torch.eye(3).to_sparse(),
    }


def leaves(found: Any) -> list[Any]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        return [leaf for item in found for leaf in leaves(item)]
    return [found]


def assert_same(got: Any, wanted: Any) -> None:
    pairs = zip(leaves(got), leaves(wanted), strict=True)
    for a, b in pairs:
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert (a.dtype, type(a), a.requires_grad) == (b.dtype, type(b), b.requires_grad)
        assert a.is_sparse or a.stride() == b.stride()
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_every_kind_of_tensor_arrives_as_it_was_sent() -> None:
    got = list(loader(every_kind, number=3))
    first, second = got[2]["twice"]
    assert first is second
    for number, batch in enumerate(got):
        assert_same(batch, every_kind(number))


@pytest.mark.parametrize("make", [one, sizes])
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_used_again(make: Callable[[int], Batch], workers: int) -> None:
    given = loader(make, workers)
    last: Any = None
    for number, batch in enumerate(given):
        assert_same(batch, make(number))
        assert blocks(given) <= 4 * workers + 2
        if last is not None:
            assert_same(last, make(number - 1))
        last = batch


@pytest.mark.parametrize(
    "hold",
    [lambda x: x, lambda x: x[3, 1:], lambda x: x.numpy()[2], lambda x: x.untyped_storage()],
    ids=["tensor", "view", "array", "storage"],
)
def test_what_is_held_is_never_written_again(hold: Callable[[Tensor], Any]) -> None:
    held = {}
    for number, batch in enumerate(loader(one)):
        if number % 3:
            held[number] = hold(batch.views[0])
        del batch
    for number, part in held.items():
        assert torch.equal(values(part), values(hold(one(number).views[0])))


def values(part: Any) -> Tensor:
    if isinstance(part, torch.UntypedStorage):
        return torch.empty(0).set_(part)
    return torch.as_tensor(part)


def test_blocks_that_were_held_are_given_back_to_the_system() -> None:
    given = loader(one, persistent_workers=True)
    held = list(given)
    assert blocks(given) == len(held) == 24
    del held
    for batch in given:
        assert_same(batch, one(int(batch.index[0])))
    assert blocks(given) <= 5


def identity(batch: Any) -> Any:
    return batch


def copy_of(make: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """The batches with new tensors: torch moves a tensor into shared memory once."""
    return lambda seed: Batch([make(seed).views[0].clone()], make(seed).index)


class Faults:
    """Megabytes that exist already, with the page faults of the worker so far."""

    def __init__(self) -> None:
        self.pixels = numbers(0, 1 << 20)

    def __call__(self, seed: int) -> Batch:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return Batch([self.pixels], torch.tensor([faults]))


def test_a_worker_has_few_page_faults() -> None:
    make, number = Faults(), 64
    pages = make.pixels.nbytes // resource.getpagesize()
    faults = [int(batch.index[0]) for batch in loader(make, number=number)]
    new = {"batch_size": 1, "num_workers": 1, "collate_fn": identity}
    usual: Any = DataLoader(Made(copy_of(make), number), **new)  # type: ignore[arg-type]
    usual_faults = [int(batch.index[0]) for batch in usual]
    assert faults[-1] - faults[0] < 16 * pages
    assert usual_faults[-1] - usual_faults[0] > 60 * pages


@pytest.mark.parametrize("child_frees", [False, True])
def test_a_child_and_the_reader_do_not_free_each_others_batches(child_frees: bool) -> None:
    given = iter(loader(one, prefetch_factor=1))
    here, there = next(given), next(given)
    waits, goes_on = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if child_frees:
                del here
                gc.collect()
            os.read(waits, 1)
            assert_same(there, one(1))
            os._exit(0)
        finally:
            os._exit(1)
    del there
    for _ in given:
        pass
    os.write(goes_on, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert_same(here, one(0))


class Nested(IterableDataset[Batch]):
    """A set that reads a loader without workers, itself in a worker."""

    def __iter__(self) -> Iterator[Batch]:
        return iter(EvalLoader(Made(one, 3), 1, 0, rank=0, world=1))


def test_a_loader_within_a_worker_gives_its_batches() -> None:
    for number, batch in enumerate(DataLoader(Nested(), batch_size=None, num_workers=1)):
        assert_same(batch, one(number))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_set_of_an_evaluation_loader_is_found_and_read_without_workers(workers: int) -> None:
    data = Made(one, 8)
    given = EvalLoader(data, 1, workers, rank=0, world=1)
    for _ in range(2):
        assert dataset_of(given) is data
        first = first_batch(given)
        assert torch.equal(first.views[0], one(0).views[0][:2])
        for number, batch in enumerate(given):
            assert_same(batch, one(number))


def test_a_copy_of_a_loader_reads_its_own_batches() -> None:
    given = loader(one, persistent_workers=True)
    other = copy.deepcopy(given)
    for number, (a, b) in enumerate(zip(given, other, strict=True)):
        assert_same(a, one(number))
        assert_same(b, one(number))
    del other, b
    gc.collect()
    for number, batch in enumerate(given):
        assert_same(batch, one(number))


def test_full_shared_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    given: Any = iter(loader(one))
    with pytest.raises(RuntimeError, match=r"must have room for three batches .*--shm-size"):
        next(given)


def test_an_error_in_a_batch_that_cannot_cross_is_raised() -> None:
    given: Any = iter(loader(lambda seed: (torch.zeros(2), lambda: seed)))
    with pytest.raises(Exception, match="pickle"):
        next(given)


def test_the_training_loader_starts_anew_behind_close() -> None:
    train = TrainLoader(Made(one, 24), KeyedSampler(24, 1, rank=0, world=1), num_workers=2)
    kept: list[Batch] = []
    for _ in range(2):
        kept += train
        train.close()
    assert blocks(train._loader) == 0
    assert len(kept) == 48
    for batch in kept:
        assert_same(batch, one(int(batch.index[0])))

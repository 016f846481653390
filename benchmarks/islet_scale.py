"""ISLET at scale: 10⁸ coefficients, streams never held, Dask workers, growth of the cost."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from bozzetto.regress import DaskShards, ISLETRegressor, RankOne
from bozzetto.regress.designs import inner
from bozzetto.tensors import Tucker

Row = dict[str, Any]


def diagonal_truth(p: int, rank: int, seed: int) -> Tucker:
    """Norm 1, equal singular values along every mode of size p."""
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(p, rank, generator=g, dtype=torch.float64) for _ in range(3)]
    core = torch.zeros(rank, rank, rank, dtype=torch.float64)
    core[range(rank), range(rank), range(rank)] = rank**-0.5
    return Tucker(core, tuple(torch.linalg.qr(draw)[0] for draw in draws))


def relative_error(model: ISLETRegressor, truth: Tucker) -> float:
    """‖Â − A‖ / ‖A‖ in Tucker form: the tensors are not formed."""
    found = Tucker(torch.from_numpy(model.core_), tuple(map(torch.from_numpy, model.factors_)))
    ranks = [a + b for a, b in zip(found.ranks, truth.ranks, strict=True)]
    core = torch.zeros(ranks, dtype=torch.float64)
    core[tuple(slice(r) for r in found.ranks)] = found.core
    core[tuple(slice(r, None) for r in found.ranks)] = -truth.core
    pairs = zip(found.factors, truth.factors, strict=True)
    gap = Tucker(core, tuple(torch.cat(pair, dim=1) for pair in pairs))
    return float(gap.orthonormal().core.norm() / truth.orthonormal().core.norm())


def floor(p: int, rank: int, n: int, noise: float) -> tuple[int, float]:
    """Unknowns m, and σ √(m / (n − m)): the error of least squares that knows the directions."""
    m = rank**3 + 3 * (p - rank) * rank
    return m, noise * (m / (n - m)) ** 0.5


def alone(function: Callable[..., Row], *arguments: Any) -> Row:
    """The row of a function in a process of its own, with that process's peak memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, *arguments).result()


def _measured(function: Callable[..., Row], *arguments: Any) -> Row:
    x = np.random.default_rng(0).standard_normal((100, 4, 4, 4))
    ISLETRegressor(1).fit(x, x[:, 0, 0, 0])  # what the first fit of a process loads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, busy = time.perf_counter(), time.process_time()
    row = function(*arguments)
    return row | {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(time.process_time() - busy, 2),
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "of_which_imports_GiB": round(before / 2**20, 3),
    }


def rank_one_run(p: int, rank: int, n: int, noise: float, n_iter: int) -> Row:
    """Rank-one sign covariates a ∘ b ∘ c of p³ entries: uncorrelated entries of variance 1."""
    truth, rng = diagonal_truth(p, rank, 0), np.random.default_rng(1)
    signs = [2 * rng.integers(0, 2, (n, p)).astype(np.float32) - 1 for _ in range(3)]
    x = RankOne.of(*signs)
    y = inner(x, truth).numpy() + noise * rng.standard_normal(n)
    start = time.perf_counter()
    model = ISLETRegressor(rank, n_iter=n_iter).fit(x, y)
    unknowns, oracle = floor(p, rank, n, noise)
    return {
        "entries": p**3,
        "rank": rank,
        "n": n,
        "noise": noise,
        "seed": 1,
        "unknowns": unknowns,
        "error": relative_error(model, truth),
        "oracle_error": oracle,
        "refinements": model.n_iter_,
        "fit_seconds": round(time.perf_counter() - start, 1),
    }


def headline() -> Row:
    """10⁸ coefficients from 40,000 rank-one covariates."""
    return {"rows": [alone(rank_one_run, 465, 1, 40_000, 0.1, 20)]}


class Stream:
    """Normal covariates made batch by batch at every reading, float32; batches are their seeds."""

    def __init__(self, truth: Tucker, n: int, noise: float, batch: int) -> None:
        self.coef = truth.full().numpy().astype(np.float32).ravel()
        self.shape, self.n, self.noise, self.batch = truth.shape, n, noise, batch
        self.making = 0.0  # processor seconds spent on making them

    def load(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, self.coef.size), dtype=np.float32)
        y = x @ self.coef + self.noise * rng.standard_normal(self.batch)
        return x.reshape(self.batch, *self.shape), y

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for seed in range(self.n // self.batch):
            start = time.process_time()
            block = self.load(seed)
            self.making += time.process_time() - start
            yield block


def stream_run(p: int, rank: int, n: int, noise: float, n_iter: int) -> Row:
    truth = diagonal_truth(p, rank, 0)
    stream = Stream(truth, n, noise, max(1, 4_000_000 // p**3))
    start = time.process_time()
    model = ISLETRegressor(rank, n_iter=n_iter, tol=0.0).fit_batches(stream)
    busy = time.process_time() - start
    unknowns, oracle = floor(p, rank, n, noise)
    return {
        "entries": p**3,
        "rank": rank,
        "n": n,
        "noise": noise,
        "unknowns": unknowns,
        "error": relative_error(model, truth),
        "oracle_error": oracle,
        "refinements": model.n_iter_,
        "processor_seconds_of_the_fit": round(busy - stream.making, 2),
        "processor_seconds_making_covariates": round(stream.making, 2),
        "covariates_GiB_if_held": 4 * n * p**3 / 2**30,
    }


def streamed() -> Row:
    """10⁶ coefficients from 8,000 dense tensors that are never held."""
    return {"rows": [alone(stream_run, 100, 3, 8000, 0.2, 1)]}


def growth() -> Row:
    """Time and memory in p, n and r: one refinement on a stream, and the slopes of the logarithms.

    The slope in p is that in the number of entries p³; memory is what comes above the imports.
    """
    runs = {
        "entries": [(p, 2, 1600, 0.1, 1) for p in (20, 30, 40, 50)],
        "n": [(20, 2, n, 0.1, 1) for n in (1600, 3200, 6400, 12800)],
        "rank": [(30, r, 3200, 0.1, 1) for r in (1, 2, 4, 8)],
    }
    rows = {name: [alone(stream_run, *run) for run in each] for name, each in runs.items()}
    for row in (row for each in rows.values() for row in each):
        row["GiB_above_imports"] = round(row["peak_GiB"] - row["of_which_imports_GiB"], 3)
    measured = ("processor_seconds_of_the_fit", "GiB_above_imports")
    slopes = [
        {"in": name, "of": of, "exponent": slope([row[name] for row in each], each, of)}
        for name, each in rows.items()
        for of in measured
    ]
    return {"rows": [row for each in rows.values() for row in each], "exponents": slopes}


def slope(sizes: list[float], rows: list[Row], of: str) -> float:
    """Of the least-squares line through the logarithms."""
    values = [max(row[of], 1e-3) for row in rows]
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def workers() -> Row:
    """One estimate by 1 and 2 Dask workers, and what the counts say about more of them.

    Model of a pass over n observations by w workers: n p (2 a) / (w f) seconds of arithmetic, a the
    multiply-adds an entry, and ⌈log₂ w⌉ sums of s bytes over a network of `bandwidth` bytes a
    second.
    """
    try:
        from dask import delayed
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("this benchmark needs dask: pip install bozzetto[dask]") from error

    p, rank, n = 60, 2, 2560
    truth = diagonal_truth(p, rank, 0)
    stream = Stream(truth, n, 0.1, 16)
    rows: list[Row] = []
    for count in (1, 2):
        with (
            LocalCluster(count, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            shards = DaskShards(tuple(delayed(stream.load)(seed) for seed in range(n // 16)))
            warm = DaskShards(shards.shards[:20])  # workers import the library
            ISLETRegressor(rank, n_iter=0, alpha=1.0).fit_batches(warm)
            start = time.perf_counter()
            model = ISLETRegressor(rank, n_iter=1).fit_batches(shards)
            seconds = round(time.perf_counter() - start, 2)
        rows.append({"workers": count, "seconds": seconds, "error": relative_error(model, truth)})
    unknowns, _ = floor(p, rank, n, 0.1)
    return {
        "rows": rows,
        "cores": os.cpu_count(),
        "bytes_of_a_covariance_sum": 16 * p**3,
        "bytes_of_a_Gram_sum": 8 * unknowns**2,
        "model": [modelled(w) for w in (1, 10, 100, 1000)],
    }


def modelled(
    workers: int,
    *,
    entries: int = 10**8,
    n: int = 10**6,
    unknowns: int = 4176,
    rank: int = 3,
    flops: float = 1e10,
    bandwidth: float = 1e9,
) -> Row:
    """Seconds of the first pass and of a refinement for dense covariates, on paper."""
    rounds = (workers - 1).bit_length()
    first = 4 * n * entries / (workers * flops) + rounds * 16 * entries / bandwidth
    work = 4 * rank * n * entries + 2 * n * unknowns**2
    refinement = work / (workers * flops) + rounds * 8 * unknowns**2 / bandwidth
    return {"workers": workers, "first_pass_s": first, "refinement_s": refinement}


BENCHMARKS: dict[str, Callable[[], Row]] = {
    "islet-headline": headline,
    "islet-streamed": streamed,
    "islet-growth": growth,
    "islet-workers": workers,
}

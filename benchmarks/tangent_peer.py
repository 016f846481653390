"""neural-tangents as a process that times one kernel a line; run by `tangent_speed`, not by hand.

Its interpreter needs jax==jaxlib==0.4.30, numpy<2, scipy<1.13 and neural-tangents==0.6.5 without
dependencies, with frozendict and tf2jax==0.3.6 (or the line `from . import experimental` removed).

    python benchmarks/tangent_peer.py FILE.npz float64

It reads names from standard input and writes {"seconds": processor seconds, "trace", "norm"}.
"""

import json
import sys
import time
from typing import Any


def networks(stax: Any) -> dict[str, list[Any]]:
    """The architectures of the limiting kernels."""

    def conv() -> list[Any]:
        return [stax.Conv(64, (3, 3), padding="SAME", W_std=2**0.5, b_std=0.1), stax.Relu()]

    return {
        "dense": [stax.Dense(64, 2**0.5, 0.1), stax.Relu()] * 3 + [stax.Dense(1)],
        "mean": conv() * 3 + [stax.GlobalAvgPool(), stax.Dense(1)],
        "flatten": conv() * 3 + [stax.Flatten(), stax.Dense(1)],
    }


def finite(stax: Any) -> dict[str, list[Any]]:
    """The architectures of the empirical kernels, of 10 outputs."""
    dense = [stax.Dense(512), stax.Relu(), stax.Dense(512), stax.Relu(), stax.Dense(10)]
    conv = [stax.Conv(32, (3, 3), padding="SAME"), stax.Relu()] * 3
    return {"empirical dense": dense, "empirical conv": [*conv, stax.GlobalAvgPool(), dense[-1]]}


def jobs(data: Any, dtype: str) -> dict[str, Any]:
    """A function of no arguments for every name: compiled kernels."""
    import jax
    import neural_tangents as nt
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", dtype == "float64")
    made = {}
    for name, layers in networks(stax).items():
        x = jax.numpy.array(data[name].astype(dtype))
        rule = stax.serial(*layers)[2]
        kernel = jax.jit(lambda x, rule=rule: rule(x, None, "ntk"))
        made[name] = lambda kernel=kernel, x=x: kernel(x)
    for name, layers in finite(stax).items():
        init, apply, _ = stax.serial(*layers)
        x = jax.numpy.array(data[name].astype(dtype))
        weights = init(jax.random.PRNGKey(0), x.shape)[1]
        for route in ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"):
            f = nt.empirical_ntk_fn(
                apply, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation[route]
            )
            kernel = jax.jit(lambda x, w, f=f: f(x, None, w))
            made[f"{name} {route}"] = lambda k=kernel, x=x, w=weights: k(x, w)
    return made


def main(path: str, dtype: str) -> None:
    """Serve until standard input ends."""
    import numpy as np

    known = jobs(np.load(path), dtype)
    for line in sys.stdin:
        began = time.process_time()
        try:
            value = np.asarray(known[line.strip()]().block_until_ready())
        except Exception as error:  # one route of it fails on this version of jax
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), flush=True)
            continue
        found = {"seconds": time.process_time() - began, "norm": float(np.linalg.norm(value))}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The recorded wirings once more, in plain torch, from the formulas of the cases' README.

Nothing of multiway is used. Names, shapes and options are those of the recorded format, so that one
set of tensors goes through both. Everything is computed in the type of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm, silu

Shapes = dict[str, tuple[int, ...]]
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the body, the name of a wiring and its options."""

    wiring: str
    options: Mapping[str, Any]
    depth: int
    width: int
    heads: int
    hidden: int
    vocab: int
    base: float = 10000.0

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    @property
    def sublayers(self) -> int:
        return 2 * self.depth

    def ways(self, block: int) -> int:
        """Streams of muddformer behind a block."""
        return 4 if self.option("qkv", True) and block + 1 < self.depth else 1

    def split(self) -> bool:
        """Whether attention has three norms."""
        return self.wiring == "muddformer" and self.option("qkv", True)


def config_of(recorded: Mapping[str, Any]) -> Config:
    """From the `config` of a config.json."""
    hidden = int(recorded["mlp_ratio"] * recorded["d_model"])
    return Config(
        wiring=recorded["connection"],
        options=recorded["connection_kwargs"],
        depth=recorded["n_layer"],
        width=recorded["d_model"],
        heads=recorded["n_head"],
        hidden=-(-hidden // 64) * 64,
        vocab=recorded["vocab_size"],
        base=recorded["rope_theta"],
    )


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x**2, -1, keepdim=True) + EPS)


def stream_major(lanes: Tensor) -> Tensor:
    """[B, T, n, D] as [B, T, n D]."""
    return lanes.reshape(*lanes.shape[:2], -1)


class Body:
    """Sublayers with their input norms, by number."""

    def __init__(self, c: Config, params: Mapping[str, Tensor]) -> None:
        self.c, self.p = c, params

    def wire(self, name: str) -> Tensor:
        return self.p[f"connection.{name}"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The norm of that name; the identity where there is none."""
        weight = self.p.get(f"{name}.weight")
        return x if weight is None else rms(x) * weight

    def f(
        self, number: int, x: Tensor, key: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """A sublayer of x; of a query, key and value input for attention that has three."""
        at = f"sublayers.{number}"
        if number % 2:
            x = self.norm(x, f"{at}.norm")
            gate = silu(torch.einsum("btd,fd->btf", x, self.p[f"{at}.w1.weight"]))
            up = torch.einsum("btd,fd->btf", x, self.p[f"{at}.w3.weight"])
            return torch.einsum("btf,df->btd", gate * up, self.p[f"{at}.w2.weight"])
        if self.c.split():
            key, value = (x if each is None else each for each in (key, value))
            inputs = [self.norm(z, f"{at}.norm_{s}") for s, z in zip("qkv", (x, key, value))]  # noqa: B905
        else:
            inputs = [self.norm(x, f"{at}.norm_q")] * 3
        q, k, v = (
            torch.einsum("btd,ed->bte", z, self.p[f"{at}.w{s}.weight"])
            .unflatten(-1, (self.c.heads, -1))
            .transpose(1, 2)
            for s, z in zip("qkv", inputs)  # noqa: B905
        )
        scores = torch.einsum("bhqe,bhke->bhqk", self.turned(q), self.turned(k))
        length, width = q.shape[-2:]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (scores / math.sqrt(width)).masked_fill(hidden, -math.inf).softmax(-1)
        merged = torch.einsum("bhqk,bhke->bqhe", weights, v).flatten(2)
        return torch.einsum("btd,ed->bte", merged, self.p[f"{at}.wo.weight"])

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions as products of complex numbers: x [B, H, T, E]."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        length, half = pairs.shape[-2:]
        rates = self.c.base ** (-torch.arange(half, dtype=x.dtype) / half)
        angles = torch.outer(torch.arange(length, dtype=x.dtype), rates)
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def forward(c: Config, params: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """`wired`, `logits` and `loss` of a model. tokens: [B, T]."""
    body = Body(c, params)
    table = params["embed.weight"]
    wired = WIRINGS[c.wiring](c, body, table[tokens])
    last = body.norm(wired, "final_norm")
    logits = torch.einsum("btd,vd->btv", last, params.get("lm_head.weight", table))
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return {"wired": wired, "logits": logits, "loss": loss}


# Wirings: from the embedding to what the final norm reads


def prenorm(c: Config, body: Body, h: Tensor) -> Tensor:
    for l in range(c.sublayers):  # noqa: E741
        h = h + body.f(l, h)
    return h


def postnorm(c: Config, body: Body, h: Tensor) -> Tensor:
    for l in range(c.sublayers):  # noqa: E741
        h = rms(h + body.f(l, h)) * body.wire(f"norms.{l}.weight")
    return h


def _coefficients(body: Body, site: str, lanes: Tensor, dynamic: bool) -> tuple[Tensor, Tensor]:
    """alpha [B, T, n, columns] and beta [B, T, n] of hc and frac."""
    alpha = body.wire(f"{site}.static_alpha").expand(*lanes.shape[:2], -1, -1)
    beta = body.wire(f"{site}.static_beta").expand(*lanes.shape[:2], -1)
    if dynamic:
        weight, bias = (body.wire(f"{site}.norm.{name}") for name in ("weight", "bias"))
        z = layer_norm(lanes, lanes.shape[-1:], weight, bias, 1e-5)
        made = torch.einsum("btnd,dc->btnc", z, body.wire(f"{site}.dyn_alpha")).tanh()
        alpha = alpha + body.wire(f"{site}.alpha_scale") * made
        made = torch.einsum("btnd,d->btn", z, body.wire(f"{site}.dyn_beta")).tanh()
        beta = beta + body.wire(f"{site}.beta_scale") * made
    return alpha, beta


def hc(c: Config, body: Body, x0: Tensor) -> Tensor:
    lanes = torch.stack([x0] * c.option("n", 4), 2)
    for l in range(c.sublayers):  # noqa: E741
        alpha, beta = _coefficients(body, f"sites.{l}", lanes, c.option("dynamic", True))
        mixtures = torch.einsum("btic,btid->btcd", alpha, lanes)
        y = body.f(l, mixtures[:, :, 0])
        lanes = mixtures[:, :, 1:] + torch.einsum("btk,btd->btkd", beta, y)
    return lanes.sum(2)


def frac(c: Config, body: Body, x0: Tensor) -> Tensor:
    m = c.option("m", 2)
    lanes = x0.unflatten(-1, (m, -1))
    for l in range(c.sublayers):  # noqa: E741
        alpha, beta = _coefficients(body, f"sites.{l}", lanes, c.option("dynamic", True))
        mixtures = torch.einsum("btic,btid->btcd", alpha, lanes)
        y = body.f(l, stream_major(mixtures[:, :, :m])).unflatten(-1, (m, -1))
        lanes = mixtures[:, :, m:] + beta[..., None] * y
    return stream_major(lanes)


def mhc(c: Config, body: Body, x0: Tensor) -> Tensor:
    n = c.option("n", 4)
    lanes = torch.stack([x0] * n, 2)
    for l in range(c.sublayers):  # noqa: E741
        site, v = f"sites.{l}", stream_major(lanes)
        z = torch.einsum("btv,rv->btr", v, body.wire(f"{site}.phi"))
        z = z / torch.sqrt(torch.mean(v**2, -1, keepdim=True) + EPS)
        alpha, bias = body.wire(f"{site}.alpha"), body.wire(f"{site}.bias")
        pre = torch.sigmoid(alpha[0] * z[..., :n] + bias[:n]) + EPS
        post = 2 * torch.sigmoid(alpha[1] * z[..., n : 2 * n] + bias[n : 2 * n])
        mixing = (alpha[2] * z[..., 2 * n :] + bias[2 * n :]).unflatten(-1, (n, n))
        mixing = sinkhorn(mixing.softmax(-1) + EPS, c.option("sinkhorn_iters", 20))
        y = body.f(l, torch.einsum("bti,btid->btd", pre, lanes))
        lanes = torch.einsum("btjk,btjd->btkd", mixing, lanes) + post[..., None] * y[:, :, None]
    v = stream_major(lanes)
    z = torch.einsum("btv,rv->btr", rms(v), body.wire("head_phi"))
    weights = torch.sigmoid(body.wire("head_alpha") * z + body.wire("head_bias")) + EPS
    return torch.einsum("bti,btid->btd", weights, lanes)


def sinkhorn(m: Tensor, iterations: int) -> Tensor:
    """Columns, then rows and columns in turn: m [B, T, n, n]."""
    for i in range(2 * iterations - 1):
        m = m / (m.sum(-2 if i % 2 == 0 else -1, keepdim=True) + EPS)
    return m


def denseformer(c: Config, body: Body, x0: Tensor) -> Tensor:
    outputs, y, dilation = [x0], x0, c.option("dilation", 1)
    for i in range(c.depth):
        h = y + body.f(2 * i, y)
        outputs.append(h + body.f(2 * i + 1, h))
        alphas = body.wire(f"alphas.{i}")
        y = sum(alphas[j] * outputs[j] for j in range(i + 2) if (i + 1 - j) % dilation == 0)  # type: ignore[assignment]
    return y


def muddformer(c: Config, body: Body, x0: Tensor) -> Tensor:
    prepost = c.option("prepost_norm", False)

    def source(j: int, x: Tensor) -> Tensor:
        return rms(x) * body.wire(f"pre_norms.{j}.weight") if prepost else x

    sources, streams = [source(0, x0)], [x0] * 4
    for i in range(c.depth):
        q, k, v, r = streams if len(streams) == 4 else streams * 4
        h = r + body.f(2 * i, q, k, v)
        h = h + body.f(2 * i + 1, h)
        sources.append(source(i + 1, h))
        weights = body.wire(f"static.{i}").expand(*h.shape[:2], -1, -1)
        if c.option("dynamic", True):
            z = gelu(torch.einsum("btd,kd->btk", rms(h), body.wire(f"w1.{i}.weight")))
            made = torch.einsum("btk,mk->btm", z, body.wire(f"w2.{i}.weight"))
            weights = weights + made.unflatten(-1, (c.ways(i), i + 2))
        sums = torch.einsum("btcj,jbtd->cbtd", weights, torch.stack(sources))
        streams = list(sums)
        if prepost:
            last = rms(streams[-1]) * body.wire(f"post_norms.{i}.weight")
            streams = [h + each for each in (*streams[:-1], last)]
    return streams[-1]


def laurel(c: Config, body: Body, h: Tensor) -> Tensor:
    variant = c.option("variant", "rw_lr")
    for l in range(c.sublayers):  # noqa: E741
        a, b = 2 * body.wire("rw")[l].softmax(0) if "rw" in variant else torch.ones(2).to(h)
        kept = h
        if "lr" in variant:
            kept = h + torch.einsum("btd,dr,re->bte", h, body.wire("A")[l], body.wire("B")[l])
        h = a * body.f(l, h) + b * kept
    return h


def route(body: Body, l: int, sources: list[Tensor], heads: int) -> Tensor:  # noqa: E741
    """The softmax average of router l."""
    query = body.wire(f"routers.{l}.query") * body.wire(f"routers.{l}.key_norm_weight")
    stack = torch.stack(sources).unflatten(-1, (heads, -1))
    keys = rms(torch.stack(sources)).unflatten(-1, (heads, -1))
    scores = torch.einsum("sbthe,he->sbth", keys, query.unflatten(-1, (heads, -1)))
    return torch.einsum("sbth,sbthe->bthe", scores.softmax(0), stack).flatten(2)


def attnres(c: Config, body: Body, x0: Tensor) -> Tensor:
    heads = c.option("heads", 4 if c.wiring == "mhar" else 1)
    size = c.option("block_size", 0) or 1
    groups: list[list[Tensor]] = [[x0], []]
    for l in range(c.sublayers + 1):  # noqa: E741
        sources = [torch.stack(group).sum(0) for group in groups if group]
        read = route(body, l, sources, heads)
        if l == c.sublayers:
            break
        groups[-1].append(body.f(l, read))
        if len(groups[-1]) == size:
            groups.append([])
    return read


def dar(c: Config, body: Body, x0: Tensor) -> Tensor:
    h, sources, start = x0, [x0], x0
    for l in range(c.sublayers):  # noqa: E741
        read = route(body, l, sources, c.option("heads", 1))
        if c.option("gate", "none") == "zero":
            read = body.wire("gates")[l] * read
        y = body.f(l, h + read)
        h = h + y
        if not c.option("block", False):
            sources.append(y)
        elif l % 2:
            sources.append(h - start)
            start = h
    return h


WIRINGS: dict[str, Callable[[Config, Body, Tensor], Tensor]] = {
    "prenorm": prenorm,
    "postnorm": postnorm,
    "hc": hc,
    "frac": frac,
    "mhc": mhc,
    "denseformer": denseformer,
    "muddformer": muddformer,
    "laurel": laurel,
    "attnres": attnres,
    "mhar": attnres,
    "dar": dar,
}


# Parameters


def shapes(c: Config) -> Shapes:
    """Every parameter of a model."""
    found: Shapes = {"embed.weight": (c.vocab, c.width), "final_norm.weight": (c.width,)}
    inner = c.wiring != "postnorm"
    for l in range(c.sublayers):  # noqa: E741
        at, d = f"sublayers.{l}", c.width
        if l % 2:
            found |= {f"{at}.{name}.weight": (c.hidden, d) for name in ("w1", "w3")}
            found |= {f"{at}.w2.weight": (d, c.hidden)}
            norms = ["norm"]
        else:
            found |= {f"{at}.{name}.weight": (d, d) for name in ("wq", "wk", "wv", "wo")}
            norms = ["norm_q", "norm_k", "norm_v"] if c.split() else ["norm_q"]
        found |= {f"{at}.{name}.weight": (d,) for name in norms if inner}
    wiring = SHAPES[c.wiring](c)
    return {**found, **{f"connection.{name}": shape for name, shape in wiring.items()}}


def _each(c: Config, base: str, shapes: Shapes, more: int = 0) -> Shapes:
    return {
        f"{base}.{l}.{name}": shape
        for l in range(c.sublayers + more)  # noqa: E741
        for name, shape in shapes.items()
    }


def _sites(c: Config, n: int, columns: int, width: int) -> Shapes:
    found: Shapes = {"static_alpha": (n, columns), "static_beta": (n,)}
    if c.option("dynamic", True):
        found |= {"norm.weight": (width,), "norm.bias": (width,)}
        found |= {"dyn_alpha": (width, columns), "dyn_beta": (width,)}
        found |= {"alpha_scale": (), "beta_scale": ()}
    return _each(c, "sites", found)


def _mhc_shapes(c: Config) -> Shapes:
    n = c.option("n", 4)
    site: Shapes = {"phi": (n * (n + 2), n * c.width), "alpha": (3,), "bias": (n * (n + 2),)}
    head: Shapes = {"head_phi": (n, n * c.width), "head_alpha": (), "head_bias": (n,)}
    return {**_each(c, "sites", site), **head}


def _mudd_shapes(c: Config) -> Shapes:
    found: Shapes = {}
    for i in range(c.depth):
        ways, sources = c.ways(i), i + 2
        hidden = 64 * (ways * sources * (4 if ways == 1 else 1) // 64 + 1)
        found[f"static.{i}"] = (ways, sources)
        if c.option("dynamic", True):
            found[f"w1.{i}.weight"] = (hidden, c.width)
            found[f"w2.{i}.weight"] = (ways * sources, hidden)
    if c.option("prepost_norm", False):
        found |= {f"pre_norms.{j}.weight": (c.width,) for j in range(c.depth + 1)}
        found |= {f"post_norms.{i}.weight": (c.width,) for i in range(c.depth)}
    return found


def _laurel_shapes(c: Config) -> Shapes:
    variant, rank, count = c.option("variant", "rw_lr"), c.option("rank", 16), c.sublayers
    low: Shapes = {"A": (count, c.width, rank), "B": (count, rank, c.width)}
    return {**({"rw": (count, 2)} if "rw" in variant else {}), **(low if "lr" in variant else {})}


def _routers(c: Config, more: int) -> Shapes:
    return _each(c, "routers", {"query": (c.width,), "key_norm_weight": (c.width,)}, more)


SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "prenorm": lambda c: {},
    "postnorm": lambda c: _each(c, "norms", {"weight": (c.width,)}),
    "hc": lambda c: _sites(c, c.option("n", 4), 1 + c.option("n", 4), c.width),
    "frac": lambda c: _sites(
        c, c.option("m", 2), 2 * c.option("m", 2), c.width // c.option("m", 2)
    ),
    "mhc": _mhc_shapes,
    "denseformer": lambda c: {f"alphas.{i}": (i + 2,) for i in range(c.depth)},
    "muddformer": _mudd_shapes,
    "laurel": _laurel_shapes,
    "attnres": lambda c: _routers(c, 1),
    "mhar": lambda c: _routers(c, 1),
    "dar": lambda c: {
        **_routers(c, 0),
        **({"gates": (c.sublayers,)} if c.option("gate", "none") == "zero" else {}),
    },
}


def start(c: Config, name: str, shape: tuple[int, ...]) -> Tensor | float:
    """The initial values of a parameter; a number is the spread of normal ones around 0."""
    parts = name.split(".")
    if parts[0] != "connection":
        return _body_start(c, parts, shape)
    what, number = parts[-1], next((int(p) for p in parts if p.isdigit()), 0)
    prepost = c.option("prepost_norm", False)
    if what in ("phi", "head_phi"):
        return float(c.option("phi_std", 0.02))
    if what == "A":
        rank = shape[-1]
        rows = torch.eye(rank).repeat(-(-c.width // rank), 1)[: c.width] / math.sqrt(rank * c.width)
        return rows.expand(shape)
    if what == "static_alpha":
        n = shape[0]
        frac, read = c.wiring == "frac", torch.zeros(n, 1)
        read[number % n] = 1
        return torch.cat([torch.eye(n) if frac else read, torch.eye(n)], 1)
    if what == "weight" and parts[1] == "w1":
        return c.width**-0.5
    if parts[1] == "alphas" or (parts[1] == "static" and not prepost):
        newest = torch.zeros(shape)
        newest[..., -1] = 1
        return newest
    if what == "bias" and c.wiring == "mhc" and len(shape) and c.option("res_bias_diag", 0):
        n = c.option("n", 4)
        return torch.cat([torch.zeros(2 * n), c.options["res_bias_diag"] * torch.eye(n).flatten()])
    values = {"static_beta": 1.0, "key_norm_weight": 1.0, "alpha_scale": 0.01, "beta_scale": 0.01}
    values |= dict.fromkeys(("alpha", "head_alpha"), float(c.option("alpha_init", 0.01)))
    value = values.get(what, 0.0)
    if what == "weight" and parts[1] != "w2":
        value = 0.001 if parts[1] == "post_norms" else 1.0
    return torch.full(shape, value)


def _body_start(c: Config, parts: list[str], shape: tuple[int, ...]) -> Tensor | float:
    if "norm" in parts[-2]:
        return torch.ones(shape)
    feed_forward_out = parts[-2] == "w2"
    return 0.02 / math.sqrt(c.sublayers) if parts[-2] == "wo" or feed_forward_out else 0.02


def random_parameters(
    c: Config, seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Matrices with spread 0.9 / sqrt(columns), gains around 1, everything else around 0 or its
    start, far enough from it that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, shape in shapes(c).items():
        n = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name == "embed.weight":
            value = 1.2 * n / math.sqrt(c.width)
        elif name.endswith(("norm.weight", "norm_weight")) or "norm" in name.split(".")[-2]:
            value = 0.2 * n if name.endswith("bias") else 1 + 0.2 * n
        elif "query" in name:
            value = 1.5 * n / math.sqrt(c.width)
        elif name.endswith(("scale", "alpha", "beta", "alphas", "gates")) or "static" in name:
            value = 0.5 + 0.3 * n
        elif len(shape) >= 2:
            value = 0.9 * n / math.sqrt(max(shape[-2:]))
        else:
            value = 0.5 * n
        found[name] = value.to(dtype)
    return found

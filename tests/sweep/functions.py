"""Functions of torch, torch.special, torch.linalg, torch.fft and torch.nn.functional."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.comparing import random

from .case import Case, Op, functions

TOKENS = torch.tensor([0, 2, 2, 1, 1])
BAGS = torch.tensor([0, 2, 4])
ADJACENCY = random(3, 3, seed=5).relu().to_sparse()
SPELLING = torch.tensor([[1, 2], [2, 2], [1, 1]])


def rows(x: Tensor) -> Tensor:
    """The same entries, other rows."""
    return x.flip(0)


def positive(x: Tensor) -> Tensor:
    return x.exp()


def matrices(x: Tensor) -> Tensor:
    """``[N, 4] -> [N, 2, 2]``, or ``[N, 9] -> [N, 3, 3]``."""
    n = {4: 2, 9: 3}[x.shape[1]]
    return x.reshape(-1, n, n)


def regular(x: Tensor) -> Tensor:
    A = matrices(x)
    return A + 3 * torch.eye(A.shape[-1], dtype=x.dtype)


def definite(x: Tensor) -> Tensor:
    A = matrices(x)
    eigenvalues = torch.arange(1, A.shape[-1] + 1, dtype=x.dtype)
    return A @ A.mT + eigenvalues.diag()


def image(x: Tensor) -> Tensor:
    """``[N, 16] -> [N, 1, 4, 4]``."""
    return x.reshape(-1, 1, 4, 4)


def volume(x: Tensor) -> Tensor:
    """``[N, 16] -> [N, 1, 2, 2, 4]``."""
    return x.reshape(-1, 1, 2, 2, 4)


ENTRIES: Mapping[str, Op] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": lambda x: (x + 3).acosh(),
    "addcdiv": lambda x: torch.addcdiv(x, rows(x), positive(x)),
    "addcmul": lambda x: torch.addcmul(x, rows(x), x, value=0.3),
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atan2": lambda x: torch.atan2(x, rows(x) + 2),
    "atanh": torch.atanh,
    "ceil": lambda x: x * x.ceil(),
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp by tensors": lambda x: torch.clamp(x, rows(x) - 0.5, rows(x) + 0.5),
    "copysign": lambda x: torch.copysign(x, rows(x)),
    "cos": torch.cos,
    "cosh": torch.cosh,
    "deg2rad": torch.deg2rad,
    "digamma": lambda x: positive(x).digamma(),
    "div by floor": lambda x: x * torch.div(x, 0.3, rounding_mode="floor"),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": lambda x: (0.9 * x).erfinv(),
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "float_power": lambda x: torch.float_power(positive(x), rows(x)),
    "fmax": lambda x: torch.fmax(x, rows(x) + 0.1),
    "fmin": lambda x: torch.fmin(x, rows(x) + 0.1),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "frac": torch.frac,
    "hypot": lambda x: torch.hypot(x, rows(x) + 2),
    "i0": torch.i0,
    "igamma": lambda x: torch.special.gammainc(torch.full_like(x, 1.3), positive(x)),
    "igammac": lambda x: torch.special.gammaincc(torch.full_like(x, 1.3), positive(x)),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(2)),
    "lerp": lambda x: torch.lerp(x, rows(x), x * x),
    "lgamma": lambda x: positive(x).lgamma(),
    "log": lambda x: (x + 2).log(),
    "log10": lambda x: (x + 2).log10(),
    "log1p": torch.log1p,
    "log2": lambda x: (x + 2).log2(),
    "logaddexp": lambda x: torch.logaddexp(x, rows(x)),
    "logaddexp far apart": lambda x: torch.logaddexp(x, rows(x) - 1e4),
    "logaddexp2": lambda x: torch.logaddexp2(x, rows(x)),
    "logit": lambda x: x.sigmoid().logit(),
    "maximum": lambda x: torch.maximum(x, rows(x) + 0.1),
    "mvlgamma": lambda x: torch.mvlgamma(x + 3, 2),
    "nan_to_num": torch.nan_to_num,
    "polygamma": lambda x: torch.polygamma(1, positive(x)),
    "pow": lambda x: x**3,
    "pow of tensors": lambda x: positive(x) ** rows(x),
    "pow of a number": lambda x: 2**x,
    "reciprocal": lambda x: (x + 2).reciprocal(),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "rsqrt": lambda x: (x + 2).rsqrt(),
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "sinc": torch.sinc,
    "sinh": torch.sinh,
    "sqrt": lambda x: (x + 2).sqrt(),
    "square": torch.square,
    "tan": torch.tan,
    "true_divide": lambda x: torch.true_divide(x, rows(x) + 2),
    "where": lambda x: torch.where(x > 0, x**2, x.sin()),
    "xlogy": lambda x: torch.xlogy(x, rows(x) + 2),
    "special.entr": lambda x: torch.special.entr(x + 2),
    "special.erfcx": torch.special.erfcx,
    "special.i0e": torch.special.i0e,
    "special.i1": torch.special.i1,
    "special.i1e": torch.special.i1e,
    "special.log_ndtr": torch.special.log_ndtr,
    "special.ndtr": torch.special.ndtr,
    "special.ndtri": lambda x: torch.special.ndtri(x.sigmoid()),
    "special.xlog1py": lambda x: torch.special.xlog1py(x, rows(x)),
    "special.zeta": lambda x: torch.special.zeta(2.5, positive(x)),
    "F.celu in place": lambda x: F.celu(2 * x, inplace=True),
    "F.elu in place": lambda x: F.elu(2 * x, 0.7, inplace=True),
    "F.gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "F.hardsigmoid in place": lambda x: F.hardsigmoid(5 * x, inplace=True),
    "F.hardswish in place": lambda x: F.hardswish(5 * x, inplace=True),
    "F.hardtanh in place": lambda x: F.hardtanh(3 * x, inplace=True),
    "F.leaky_relu in place": lambda x: F.leaky_relu(2 * x, inplace=True),
    "F.mish in place": lambda x: F.mish(2 * x, inplace=True),
    "F.relu in place": lambda x: F.relu(2 * x, inplace=True),
    "F.rrelu": lambda x: F.rrelu(x, training=False),
    "F.selu in place": lambda x: F.selu(2 * x, inplace=True),
    "F.silu in place": lambda x: F.silu(2 * x, inplace=True),
    "F.threshold in place": lambda x: F.threshold(2 * x, 0.1, 0.3, inplace=True),
}

REDUCTIONS: Mapping[str, Op] = {
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "aminmax": lambda x: x.aminmax(dim=1),
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "cumprod": lambda x: x.cumprod(1),
    "cumsum": lambda x: (x * x).cumsum(1),
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x * x, dim=1),
    "diff": lambda x: (x * x).diff(dim=1),
    "dist": lambda x: torch.dist(x, rows(x) + 1, 3),
    "gradient": lambda x: torch.gradient(x * x, dim=1)[0],
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "max": lambda x: x.max(1)[0],
    "median": lambda x: x.median(1)[0],
    "mode": lambda x: x.mode(1)[0] * x[:, 0],
    "msort": torch.msort,
    "nanmedian": lambda x: x.nanmedian(1)[0],
    "nanquantile": lambda x: x.nanquantile(0.3, 1),
    "nansum": lambda x: (x * x).nansum(1),
    "norm": torch.norm,
    "norm 1": lambda x: x.norm(1, 1),
    "norm 1.5": lambda x: x.norm(1.5, 1),
    "norm 3": lambda x: torch.norm(x, 3, 1),
    "norm inf": lambda x: x.norm(torch.inf, 1),
    "prod": lambda x: x.prod(1),
    "prod of all": lambda x: x.prod(),
    "quantile": lambda x: x.quantile(0.3, 1),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "sort": lambda x: x.sort(1)[0],
    "std": lambda x: x.std(1),
    "std_mean": lambda x: torch.std_mean(x, 1),
    "topk": lambda x: x.topk(2, 1)[0],
    "trapz": lambda x: torch.trapz(x, rows(x).exp().cumsum(1)),
    "var": lambda x: x.var(1),
    "var_mean": lambda x: torch.var_mean(x, 1),
    "linalg.norm": lambda x: torch.linalg.norm(x, dim=1),
    "linalg.vector_norm 2.5": lambda x: torch.linalg.vector_norm(x, 2.5, 1),
    "F.normalize": F.normalize,
    "F.softmin": lambda x: F.softmin(x, 1),
    "F.layer_norm": lambda x: F.layer_norm(x, (4,)),
    "F.rms_norm": lambda x: F.rms_norm(x, (4,)),
    "F.local_response_norm": lambda x: F.local_response_norm(x.view(-1, 4, 1), 2),
    "F.lp_pool1d": lambda x: F.lp_pool1d(positive(x), 3.0, 2),
}

PAIRS: Mapping[str, Op] = {
    "cdist": lambda x: torch.cdist(x, x.sin() + 1),
    "cdist 1": lambda x: torch.cdist(x, x.sin() + 1, p=1),
    "cdist 3": lambda x: torch.cdist(x, x.sin() + 1, p=3),
    "cdist inf": lambda x: torch.cdist(x, x.sin() + 1, p=torch.inf),
    "cdist of batches": lambda x: torch.cdist(matrices(x), matrices(x.cos())),
    "corrcoef": torch.corrcoef,
    "cosine_similarity": lambda x: F.cosine_similarity(x, rows(x) + 1),
    "cov": torch.cov,
    "F.pairwise_distance": lambda x: F.pairwise_distance(x, rows(x) + 1),
    "F.pairwise_distance 3": lambda x: F.pairwise_distance(x, rows(x) + 1, p=3),
    "F.pdist": F.pdist,
    "F.pdist 1": lambda x: F.pdist(x, 1),
    "F.pdist 3": lambda x: F.pdist(x, 3),
    "F.pdist inf": lambda x: F.pdist(x, torch.inf),
    "kron": lambda x: torch.kron(x, x),
    "outer": lambda x: torch.outer(x[0], x[1]),
    "einsum": lambda x: torch.einsum("ni,nj,nk->nij", x, x, x),
    "tensordot": lambda x: torch.tensordot(x, rows(x).T, 1),
    "addmm": lambda x: torch.addmm(x[:, :3], x, x.T, beta=0.5, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(matrices(x), matrices(x), matrices(x.sin())),
    "F.bilinear": lambda x: F.bilinear(
        x, rows(x), x[:2].view(2, 1, 4) * x[0].view(1, 4, 1)
    ),
    "F.scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(
        *(x.view(-1, 1, 2, 2).roll(i, 3) for i in range(3))
    ),
    "F.scaled_dot_product_attention causal": lambda x: F.scaled_dot_product_attention(
        *(x.view(-1, 1, 2, 2).roll(i, 3) for i in range(3)), is_causal=True
    ),
    "F.scaled_dot_product_attention grouped": lambda x: F.scaled_dot_product_attention(
        x.view(-1, 2, 2, 1), *2 * [x[:, :2].view(-1, 1, 2, 1)], enable_gqa=True
    ),
}

INDEXING: Mapping[str, Op] = {
    "as_strided": lambda x: x.square().as_strided((2, 3), (2, 1)),
    "gather": lambda x: (x * x).gather(1, torch.tensor([[0, 0, 2]] * 3)),
    "index_add": lambda x: x.index_add(1, torch.tensor([0, 0, 1, 3]), x * x),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([0, 2]), x[:, :2].sin()),
    "index_fill": lambda x: (x * x).index_fill(1, torch.tensor([1]), 0.3),
    "index_put": lambda x: x.index_put(
        (torch.tensor([0, 0]), torch.tensor([1, 1])), x[0, :2].sin(), accumulate=True
    ),
    "index_reduce mean": lambda x: x.index_reduce(
        1, torch.tensor([0, 0, 1, 1]), x.sin(), "mean"
    ),
    "index_reduce prod": lambda x: x.index_reduce(
        1, torch.tensor([0, 0, 1, 1]), x.sin(), "prod"
    ),
    "masked_fill": lambda x: (x * x).masked_fill(x > 0, 0.3),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x.sin()),
    "masked_select": lambda x: (x * x).masked_select(x > 0).sum(),
    "put": lambda x: x.put(torch.tensor([1, 2]), x[0, :2].sin(), accumulate=True),
    "scatter_add": lambda x: x.scatter_add(1, torch.tensor([[0, 0, 1, 1]] * 3), x.sin()),
    "scatter_reduce amax": lambda x: x.scatter_reduce(
        1, torch.tensor([[0, 0, 1, 1]] * 3), x.sin(), "amax"
    ),
    "scatter_reduce mean": lambda x: x.scatter_reduce(
        1, torch.tensor([[0, 0, 1, 1]] * 3), x.sin(), "mean"
    ),
    "scatter_reduce prod": lambda x: x.scatter_reduce(
        1, torch.tensor([[0, 0, 1, 1]] * 3), x.sin(), "prod"
    ),
    "segment_reduce": lambda x: torch.segment_reduce(
        x.sin(), "mean", lengths=torch.tensor([1, 2])
    ),
    "segment_reduce max": lambda x: torch.segment_reduce(
        x.sin(), "max", lengths=torch.tensor([1, 2])
    ),
    "take_along_dim": lambda x: (x * x).take_along_dim(torch.tensor([[1, 2, 2]]), 1),
    "unfold": lambda x: x.square().unfold(1, 2, 1),
    "written in place": lambda x: x.clone().index_put_(
        (torch.tensor([0]), torch.tensor([1])), x[1, 1] ** 2
    ),
    "F.embedding": lambda x: F.embedding(TOKENS, x * x),
    "F.embedding_bag": lambda x: F.embedding_bag(TOKENS, x * x, BAGS),
    "F.embedding_bag max": lambda x: F.embedding_bag(TOKENS, x * x, BAGS, mode="max"),
    "F.embedding_bag sum": lambda x: F.embedding_bag(
        TOKENS, x, BAGS, mode="sum", per_sample_weights=x[0].sum() * x.T[:, 0].repeat(2)[:5]
    ),
    "sparse.mm": lambda x: torch.sparse.mm(ADJACENCY, x * x),
    "sparse @": lambda x: ADJACENCY @ x.sin(),
    "sparse.addmm": lambda x: torch.sparse.addmm(x, ADJACENCY, x * x),
    "sparse.softmax": lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(),
    "sparse.sum": lambda x: torch.sparse.sum(x.square().to_sparse(), 1).to_dense(),
}

TRANSFORMS: Mapping[str, Op] = {
    "fft.fft": lambda x: torch.fft.fft(x * x),
    "fft.fft2": lambda x: torch.fft.fft2(matrices(x * x)),
    "fft.hfft": lambda x: torch.fft.hfft(torch.fft.ihfft(x * x)),
    "fft.ifft": lambda x: torch.fft.ifft(x * x),
    "fft.rfft": lambda x: torch.fft.rfft(x * x),
    "fft.irfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) ** 2),
    "abs of complex": lambda x: torch.fft.fft(x).abs(),
    "angle": lambda x: torch.fft.fft(x + 1)[:, 0].angle(),
    "polar": lambda x: torch.polar(x.exp(), x),
    "complex": lambda x: torch.complex(x, rows(x)) ** 2,
    "view_as_complex": lambda x: torch.view_as_complex(x.view(-1, 2, 2)) ** 3,
}

LINEAR_ALGEBRA: Mapping[str, Op] = {
    "addbmm": lambda x: torch.addbmm(matrices(x)[0], matrices(x), matrices(x)),
    "cholesky": lambda x: torch.cholesky(definite(x)),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(
        torch.linalg.cholesky(definite(x))
    ),
    "cholesky_solve": lambda x: torch.cholesky_solve(
        matrices(x), torch.linalg.cholesky(definite(x))
    ),
    "det": lambda x: torch.det(matrices(x)),
    "logdet": lambda x: torch.logdet(definite(x)),
    "matrix_exp": lambda x: torch.matrix_exp(matrices(x)),
    "slogdet": lambda x: torch.slogdet(regular(x)),
    "triangular_solve": lambda x: torch.triangular_solve(matrices(x), regular(x).tril())[0],
    "linalg.cholesky": lambda x: torch.linalg.cholesky(definite(x)),
    "linalg.cond": lambda x: torch.linalg.cond(regular(x)),
    "linalg.cross": lambda x: torch.linalg.cross(matrices(x), matrices(x).sin()),
    "linalg.det": lambda x: torch.linalg.det(matrices(x)),
    "linalg.eigh": lambda x: torch.linalg.eigh(definite(x))[0],
    "linalg.eigh vectors": lambda x: torch.linalg.eigh(definite(x))[1].abs(),
    "linalg.eigvals": lambda x: torch.linalg.eigvals(definite(x)).real.sort(-1)[0],
    "linalg.eigvalsh": lambda x: torch.linalg.eigvalsh(definite(x)),
    "linalg.householder_product": lambda x: torch.linalg.householder_product(
        matrices(x).tril(), matrices(x)[..., 0].sin()
    ),
    "linalg.inv": lambda x: torch.linalg.inv(regular(x)),
    "linalg.lstsq": lambda x: torch.linalg.lstsq(regular(x)[..., :2], matrices(x)).solution,
    "linalg.lu": lambda x: torch.linalg.lu(regular(x)),
    "linalg.lu_solve": lambda x: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(regular(x)), matrices(x)
    ),
    "linalg.matrix_norm": lambda x: torch.linalg.matrix_norm(matrices(x)),
    "linalg.matrix_norm 2": lambda x: torch.linalg.matrix_norm(regular(x), 2),
    "linalg.matrix_norm nuc": lambda x: torch.linalg.matrix_norm(regular(x), "nuc"),
    "linalg.matrix_power": lambda x: torch.linalg.matrix_power(matrices(x), 3),
    "linalg.multi_dot": lambda x: torch.linalg.multi_dot([matrices(x)[0]] * 3),
    "linalg.pinv": lambda x: torch.linalg.pinv(regular(x)[..., :2]),
    "linalg.qr": lambda x: torch.linalg.qr(regular(x))[1],
    "linalg.slogdet": lambda x: torch.linalg.slogdet(regular(x)),
    "linalg.solve": lambda x: torch.linalg.solve(regular(x), matrices(x)),
    "linalg.solve_triangular": lambda x: torch.linalg.solve_triangular(
        regular(x).tril(), matrices(x), upper=False
    ),
    "linalg.svd": lambda x: torch.linalg.svd(regular(x))[1],
    "linalg.svdvals": lambda x: torch.linalg.svdvals(regular(x)),
    "linalg.tensorsolve": lambda x: torch.linalg.tensorsolve(regular(x)[0], x[0, :3]),
    "linalg.vander": lambda x: torch.linalg.vander(x[:, :3]),
    "lobpcg": lambda x: torch.lobpcg(
        torch.block_diag(*definite(x)[:1], torch.eye(6, dtype=x.dtype) * 0.1),
        k=1,
        tol=1e-12,
    )[0],
    "ormqr": lambda x: torch.ormqr(matrices(x).tril(), matrices(x)[..., 0], matrices(x)),
}

IMAGES: Mapping[str, Op] = {
    "F.affine_grid": lambda x: F.affine_grid(
        x[:, :6].view(-1, 2, 3) ** 2, (3, 1, 2, 2), align_corners=False
    ),
    "F.channel_shuffle": lambda x: F.channel_shuffle(x.square().view(-1, 4, 2, 2), 2),
    "F.conv_transpose1d": lambda x: F.conv_transpose1d(
        x.view(-1, 2, 8), x[0].view(2, 4, 2), stride=2, padding=1
    ),
    "F.conv1d": lambda x: F.conv1d(x.view(-1, 2, 8), x[0].view(4, 2, 2), dilation=2),
    "F.conv2d grouped": lambda x: F.conv2d(
        x.view(-1, 4, 2, 2), x[0].view(4, 1, 2, 2), groups=4, padding="same"
    ),
    "conv_tbc": lambda x: torch.conv_tbc(x.view(-1, 2, 8), x[0].view(1, 8, 2), x[1, :2]),
    "F.fold": lambda x: F.fold(x.square().view(-1, 4, 4), (3, 3), 2),
    "F.grid_sample": lambda x: F.grid_sample(
        image(x), 0.8 * image(x).view(-1, 2, 4, 2), align_corners=False
    ),
    "F.grid_sample bicubic": lambda x: F.grid_sample(
        image(x), 0.8 * image(x).view(-1, 2, 4, 2), mode="bicubic", align_corners=False
    ),
    "F.interpolate area": lambda x: F.interpolate(image(x * x), (3, 3), mode="area"),
    "F.interpolate bicubic": lambda x: F.interpolate(
        image(x * x), scale_factor=2, mode="bicubic"
    ),
    "F.interpolate bilinear": lambda x: F.interpolate(
        image(x * x), scale_factor=2, mode="bilinear", align_corners=True
    ),
    "F.interpolate smooth": lambda x: F.interpolate(
        image(x * x), (3, 2), mode="bilinear", antialias=True
    ),
    "F.interpolate linear": lambda x: F.interpolate(
        x.square().view(-1, 2, 8), scale_factor=2, mode="linear"
    ),
    "F.interpolate nearest": lambda x: F.interpolate(image(x * x), (3, 5), mode="nearest"),
    "F.interpolate nearest-exact": lambda x: F.interpolate(
        image(x * x), (3, 5), mode="nearest-exact"
    ),
    "F.interpolate trilinear": lambda x: F.interpolate(
        volume(x * x), (3, 3, 3), mode="trilinear"
    ),
    "F.pad": lambda x: F.pad(image(x * x), (1, 2, 0, 1), mode="reflect"),
    "F.unfold": lambda x: F.unfold(image(x * x), 2),
    "stft": lambda x: torch.stft(
        x, 4, window=torch.ones(4, dtype=x.dtype), return_complex=True
    ),
    "istft": lambda x: torch.istft(
        torch.stft(x, 4, window=torch.ones(4, dtype=x.dtype), return_complex=True) ** 2,
        4,
        window=torch.ones(4, dtype=x.dtype),
    ),
    "F.ctc_loss": lambda x: F.ctc_loss(
        x[:, :15].reshape(-1, 5, 3).transpose(0, 1).log_softmax(2),
        SPELLING,
        torch.tensor([5, 5, 4]),
        torch.tensor([2, 2, 1]),
        reduction="none",
    ),
}


def _parametrized() -> Mapping[str, Op]:
    """What ``torch.nn.utils`` does, from inside a network."""
    return {
        "weight_norm": lambda x: F.linear(x, torch._weight_norm(x[:2], x[:2, :1].exp(), 0)),
        "weight_norm 1": lambda x: F.linear(x, torch._weight_norm(x[:2], x[-1:].exp(), 1)),
        "weight_norm of all": lambda x: torch._weight_norm(x, x[0, 0], -1),
        "weight_norm_interface": lambda x: torch._weight_norm_interface(x, x[:, :1] ** 2)[
            0
        ],
        "checkpoint": _checkpointed,
        "vmap": lambda x: torch.func.vmap(lambda row: row.sin().prod())(x),
        "func.jvp": lambda x: torch.func.jvp(torch.sin, (x,), (x * x,))[1],
    }


def _checkpointed(x: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return x.sin() * x

    out: Tensor = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    return out


def cases() -> Iterator[Case]:
    """All of them."""
    for ops in (ENTRIES, REDUCTIONS, PAIRS, INDEXING, TRANSFORMS, _parametrized()):
        yield from functions(4, ops)
    yield from functions(9, LINEAR_ALGEBRA)
    yield from functions(16, IMAGES)

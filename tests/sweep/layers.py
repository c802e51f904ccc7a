"""All layers of torch.nn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .case import Case, Op, layers

# What is no layer by itself.
NOT_SWEPT = {
    "CrossMapLRN2d": "its gradient is not that of its values (torch 2.13)",
    "Container": "a deprecated name of Module",
    "Module": "the base class",
    "ModuleDict": "holds modules, has no forward",
    "ModuleList": "holds modules, has no forward",
    "ParameterDict": "holds parameters, has no forward",
    "ParameterList": "holds parameters, has no forward",
    "RNNBase": "the base class of RNN, GRU and LSTM",
    "RNNCellBase": "the base class of RNNCell, GRUCell and LSTMCell",
}


class Called(nn.Module):
    """A layer that is called in another way than with one tensor."""

    def __init__(
        self, layer: nn.Module, call: Callable[[nn.Module, Tensor], object]
    ) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> object:
        return self.call(self.layer, x)


def called(
    make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor], object]
) -> Callable[[], Op]:
    return lambda: Called(make(), call)


def twice(make: Callable[[], nn.Module]) -> Callable[[], Op]:
    """With two inputs."""
    return called(make, lambda layer, x: layer(x, x.flip(0).sin()))


def unpooled(pool: nn.Module, unpool: Callable[[], nn.Module]) -> Callable[[], Op]:
    return called(unpool, lambda layer, x: layer(*pool(x)))


def of_tokens(layer: nn.Module, x: Tensor) -> Tensor:
    """Embeddings, scaled by what is differentiated."""
    return layer(torch.tensor([[0, 1], [2, 1], [3, 3]])) * x[:, :1]


def packed(layer: nn.Module, x: Tensor) -> Tensor:
    sequence = pack_padded_sequence(x, torch.tensor([2, 2, 1]), batch_first=True)
    return pad_packed_sequence(layer(sequence)[0], batch_first=True)[0]


def parametrized(module: nn.Module, transform: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", transform)
    return module


def trained_norm(layer: nn.Module) -> nn.Module:
    """With running statistics that are not those at the start."""
    layer.running_mean.fill_(0.1)
    layer.running_var.fill_(0.5)
    return layer.eval()


def plain() -> Iterator[Case]:
    """On vectors."""
    yield from layers(
        4,
        AlphaDropout=lambda: nn.AlphaDropout().eval(),
        CELU=lambda: nn.CELU(0.7),
        DataParallel=lambda: nn.DataParallel(nn.Linear(4, 3)),
        Dropout=lambda: nn.Dropout().eval(),
        ELU=nn.ELU,
        Flatten=nn.Flatten,
        GELU=nn.GELU,
        GLU=nn.GLU,
        Hardshrink=lambda: nn.Hardshrink(0.2),
        Hardsigmoid=nn.Hardsigmoid,
        Hardswish=nn.Hardswish,
        Hardtanh=lambda: nn.Hardtanh(-0.4, 0.3),
        Identity=nn.Identity,
        LayerNorm=lambda: nn.LayerNorm(4),
        LazyLinear=lambda: nn.LazyLinear(3),
        LeakyReLU=nn.LeakyReLU,
        Linear=lambda: nn.Linear(4, 3),
        LogSigmoid=nn.LogSigmoid,
        LogSoftmax=lambda: nn.LogSoftmax(1),
        Mish=nn.Mish,
        PReLU=lambda: nn.PReLU(4),
        ReLU=nn.ReLU,
        ReLU6=nn.ReLU6,
        RMSNorm=lambda: nn.RMSNorm(4),
        RReLU=lambda: nn.RReLU().eval(),
        SELU=nn.SELU,
        Sequential=lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        SiLU=nn.SiLU,
        Sigmoid=nn.Sigmoid,
        Softmax=lambda: nn.Softmax(1),
        Softmin=lambda: nn.Softmin(1),
        Softplus=lambda: nn.Softplus(2.0),
        Softshrink=lambda: nn.Softshrink(0.2),
        Softsign=nn.Softsign,
        Tanh=nn.Tanh,
        Tanhshrink=nn.Tanhshrink,
        Threshold=lambda: nn.Threshold(0.1, 0.3),
        BatchNorm1d=lambda: nn.BatchNorm1d(4),
        BatchNorm1d_eval=lambda: trained_norm(nn.BatchNorm1d(4)),
        LazyBatchNorm1d=nn.LazyBatchNorm1d,
        SyncBatchNorm=lambda: trained_norm(nn.SyncBatchNorm(4)),
        Bilinear=twice(lambda: nn.Bilinear(4, 4, 2)),
        CosineSimilarity=twice(nn.CosineSimilarity),
        PairwiseDistance=twice(nn.PairwiseDistance),
        GRUCell=twice(lambda: nn.GRUCell(4, 4)),
        RNNCell=twice(lambda: nn.RNNCell(4, 4)),
        LSTMCell=called(lambda: nn.LSTMCell(4, 4), lambda m, x: m(x, (x.sin(), x.cos()))),
        Embedding=called(lambda: nn.Embedding(4, 2, padding_idx=1), of_embedding),
        EmbeddingBag=called(lambda: nn.EmbeddingBag(4, 2), of_tokens),
        EmbeddingBag_max=called(lambda: nn.EmbeddingBag(4, 2, mode="max"), of_tokens),
        EmbeddingBag_sum=called(
            lambda: nn.EmbeddingBag(4, 2, mode="sum", padding_idx=3), of_tokens
        ),
        Linear_weight_norm=lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
        Linear_weight_norm_1=lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=1),
        Linear_weight_norm_None=lambda: parametrizations.weight_norm(
            nn.Linear(4, 3), dim=None
        ),
        Linear_spectral_norm=lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(),
        Linear_orthogonal=lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        Linear_Cayley=lambda: parametrizations.orthogonal(
            nn.Linear(4, 4), orthogonal_map="cayley"
        ),
        Linear_Householder=lambda: parametrizations.orthogonal(
            nn.Linear(4, 4), orthogonal_map="householder"
        ),
        Linear_softplus=lambda: parametrized(nn.Linear(4, 3), nn.Softplus()),
    )


def of_embedding(layer: nn.Module, x: Tensor) -> Tensor:
    """Rows of which none is the padding's, whose slope is a convention."""
    return layer(torch.tensor([0, 2, 2])) * x[:, :2]


def sequences() -> Iterator[Case]:
    """On ``[N, channels, length]``, or sequences of vectors."""
    yield from layers(
        2,
        4,
        AdaptiveAvgPool1d=lambda: nn.AdaptiveAvgPool1d(3),
        AdaptiveMaxPool1d=lambda: nn.AdaptiveMaxPool1d(3),
        AvgPool1d=lambda: nn.AvgPool1d(2),
        CircularPad1d=lambda: nn.CircularPad1d(1),
        ConstantPad1d=lambda: nn.ConstantPad1d(1, 0.3),
        Conv1d=lambda: nn.Conv1d(2, 2, 2),
        Conv1d_weight_norm=lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2)),
        ConvTranspose1d=lambda: nn.ConvTranspose1d(2, 2, 2),
        Dropout1d=lambda: nn.Dropout1d().eval(),
        FeatureAlphaDropout=lambda: nn.FeatureAlphaDropout().eval(),
        GroupNorm=lambda: nn.GroupNorm(2, 2),
        InstanceNorm1d=lambda: nn.InstanceNorm1d(2, affine=True),
        LazyInstanceNorm1d=lambda: nn.LazyInstanceNorm1d(),
        LPPool1d=lambda: nn.LPPool1d(2, 2),
        LazyConv1d=lambda: nn.LazyConv1d(2, 2),
        LazyConvTranspose1d=lambda: nn.LazyConvTranspose1d(2, 2),
        MaxPool1d=lambda: nn.MaxPool1d(2),
        MaxUnpool1d=unpooled(
            nn.MaxPool1d(2, return_indices=True), lambda: nn.MaxUnpool1d(2)
        ),
        ReflectionPad1d=lambda: nn.ReflectionPad1d(1),
        ReplicationPad1d=lambda: nn.ReplicationPad1d(1),
        Unflatten=lambda: nn.Unflatten(1, (1, 2)),
        ZeroPad1d=lambda: nn.ZeroPad1d(1),
    )
    yield from layers(
        2,
        2,
        GRU=lambda: nn.GRU(2, 2, batch_first=True, bidirectional=True),
        LSTM=lambda: nn.LSTM(2, 2, batch_first=True, num_layers=2),
        LSTM_projected=lambda: nn.LSTM(2, 2, batch_first=True, proj_size=1),
        LSTM_packed=called(lambda: nn.LSTM(2, 2, batch_first=True), packed),
        RNN=lambda: nn.RNN(2, 2, batch_first=True),
        RNN_relu=lambda: nn.RNN(2, 2, batch_first=True, nonlinearity="relu"),
        MultiheadAttention=called(
            lambda: nn.MultiheadAttention(2, 1, batch_first=True), lambda m, x: m(x, x, x)
        ),
        Transformer=called(
            lambda: nn.Transformer(2, 1, 1, 1, 2, 0.0, batch_first=True),
            lambda m, x: m(x, x.sin()),
        ),
        TransformerDecoder=twice(
            lambda: nn.TransformerDecoder(
                nn.TransformerDecoderLayer(2, 1, 2, 0.0, batch_first=True), 1
            )
        ),
        TransformerDecoderLayer=twice(
            lambda: nn.TransformerDecoderLayer(2, 1, 2, 0.0, batch_first=True)
        ),
        TransformerEncoder=lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(2, 1, 2, 0.0, batch_first=True), 1
        ),
        TransformerEncoderLayer=lambda: nn.TransformerEncoderLayer(
            2, 1, 2, 0.0, "gelu", batch_first=True
        ).eval(),
    )


def images() -> Iterator[Case]:
    """On ``[N, channels, height, width]``."""
    yield from layers(
        1,
        4,
        4,
        AdaptiveAvgPool2d=lambda: nn.AdaptiveAvgPool2d(3),
        AdaptiveMaxPool2d=lambda: nn.AdaptiveMaxPool2d(3),
        AvgPool2d=lambda: nn.AvgPool2d(2),
        BatchNorm2d=lambda: nn.BatchNorm2d(1),
        CircularPad2d=lambda: nn.CircularPad2d(1),
        ConstantPad2d=lambda: nn.ConstantPad2d(1, 0.3),
        Conv2d=lambda: nn.Conv2d(1, 2, 2, padding=1, padding_mode="reflect"),
        Conv2d_weight_norm=lambda: parametrizations.weight_norm(nn.Conv2d(1, 2, 2)),
        ConvTranspose2d=lambda: nn.ConvTranspose2d(1, 1, 2, stride=2),
        Dropout2d=lambda: nn.Dropout2d().eval(),
        FractionalMaxPool2d=lambda: nn.FractionalMaxPool2d(
            2, 2, _random_samples=torch.full((3, 1, 2), 0.3, dtype=torch.float64)
        ),
        InstanceNorm2d=lambda: nn.InstanceNorm2d(1),
        LPPool2d=lambda: nn.LPPool2d(2, 2),
        LazyBatchNorm2d=nn.LazyBatchNorm2d,
        LazyConv2d=lambda: nn.LazyConv2d(1, 2),
        LazyConvTranspose2d=lambda: nn.LazyConvTranspose2d(1, 2),
        LazyInstanceNorm2d=lambda: nn.LazyInstanceNorm2d(),
        MaxPool2d=lambda: nn.MaxPool2d(2),
        MaxUnpool2d=unpooled(
            nn.MaxPool2d(2, return_indices=True), lambda: nn.MaxUnpool2d(2)
        ),
        PixelUnshuffle=lambda: nn.PixelUnshuffle(2),
        ReflectionPad2d=lambda: nn.ReflectionPad2d(1),
        ReplicationPad2d=lambda: nn.ReplicationPad2d(1),
        Unfold=lambda: nn.Unfold(2),
        Upsample=lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
        UpsamplingBilinear2d=lambda: nn.UpsamplingBilinear2d(scale_factor=2),
        UpsamplingNearest2d=lambda: nn.UpsamplingNearest2d(scale_factor=2),
        ZeroPad2d=lambda: nn.ZeroPad2d(1),
    )
    yield from layers(
        4,
        2,
        2,
        ChannelShuffle=lambda: nn.ChannelShuffle(2),
        LocalResponseNorm=lambda: nn.LocalResponseNorm(2),
        PixelShuffle=lambda: nn.PixelShuffle(2),
        Softmax2d=nn.Softmax2d,
    )
    yield from layers(4, 4, Fold=lambda: nn.Fold((3, 3), 2))


def volumes() -> Iterator[Case]:
    """On ``[N, channels, depth, height, width]``."""
    yield from layers(
        1,
        2,
        2,
        4,
        AdaptiveAvgPool3d=lambda: nn.AdaptiveAvgPool3d((1, 2, 3)),
        AdaptiveMaxPool3d=lambda: nn.AdaptiveMaxPool3d((1, 2, 3)),
        AvgPool3d=lambda: nn.AvgPool3d(2),
        BatchNorm3d=lambda: nn.BatchNorm3d(1),
        CircularPad3d=lambda: nn.CircularPad3d(1),
        ConstantPad3d=lambda: nn.ConstantPad3d(1, 0.3),
        Conv3d=lambda: nn.Conv3d(1, 1, 2),
        ConvTranspose3d=lambda: nn.ConvTranspose3d(1, 1, 2),
        Dropout3d=lambda: nn.Dropout3d().eval(),
        InstanceNorm3d=lambda: nn.InstanceNorm3d(1),
        LPPool3d=lambda: nn.LPPool3d(2, 2),
        LazyBatchNorm3d=nn.LazyBatchNorm3d,
        LazyConv3d=lambda: nn.LazyConv3d(1, 2),
        LazyConvTranspose3d=lambda: nn.LazyConvTranspose3d(1, 2),
        LazyInstanceNorm3d=lambda: nn.LazyInstanceNorm3d(),
        MaxPool3d=lambda: nn.MaxPool3d(2),
        MaxUnpool3d=unpooled(
            nn.MaxPool3d(2, return_indices=True), lambda: nn.MaxUnpool3d(2)
        ),
        ReflectionPad3d=lambda: nn.ReflectionPad3d(1),
        ReplicationPad3d=lambda: nn.ReplicationPad3d(1),
        ZeroPad3d=lambda: nn.ZeroPad3d(1),
    )
    yield from layers(
        1,
        4,
        4,
        4,
        FractionalMaxPool3d=lambda: nn.FractionalMaxPool3d(
            2, 2, _random_samples=torch.full((3, 1, 3), 0.3, dtype=torch.float64)
        ),
    )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from plain()
    yield from sequences()
    yield from images()
    yield from volumes()

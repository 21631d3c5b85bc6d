"""The other side of `benchmarks.baselines`: a step of each deep baseline, plainly in PyTorch.

    python benchmarks/torch_baselines.py {float32,bfloat16} THREADS WARM_UP STEPS METHOD

Needs PyTorch alone. METHOD: cae_ocsvm, dagmm, dsebm, adgan, deep_svdd or autoencoder, that of Deep
SVDD. For every line on standard input it trains on a fixed batch of 32x32x3 images, WARM_UP steps
and STEPS more, and answers with the seconds that each of these took, of the processor's time where
--processor-time is given too. Images are channels_last; autocast computes the convolutions in
bfloat16.
"""

import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def encoder(units, *activation):
    """Three convolutions of stride 2 and a dense layer."""
    parts, inputs = [], 3
    for filters in (64, 128, 256):
        convolution = nn.Conv2d(inputs, filters, 3, 2, 1)
        parts += [convolution, nn.BatchNorm2d(filters, 1e-3, 0.01), nn.ReLU()]
        inputs = filters
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4096, units), *activation)


def decoder(units):
    """A dense layer and three transposed convolutions of stride 2."""

    def up(inputs, filters):
        return nn.ConvTranspose2d(inputs, filters, 3, 2, 1, 1)

    return nn.Sequential(
        *[nn.Linear(units, 4096), nn.BatchNorm1d(4096, 1e-3, 0.01), nn.ReLU()],
        nn.Unflatten(1, (256, 4, 4)),
        *[up(256, 128), nn.BatchNorm2d(128, 1e-3, 0.01), nn.ReLU()],
        *[up(128, 64), nn.BatchNorm2d(64, 1e-3, 0.01), nn.ReLU()],
        *[up(64, 3), nn.Tanh()],
    )


def block(inputs, filters, resize):
    """Deep SVDD's: convolution, normalisation, leaky ReLU, and twice or half as large."""
    convolution = nn.Conv2d(inputs, filters, 5, padding=2, bias=False)
    return [convolution, nn.BatchNorm2d(filters, 1e-4), nn.LeakyReLU(0.01), resize]


def lenet():
    """Deep SVDD's encoder."""
    return nn.Sequential(
        *block(3, 32, nn.MaxPool2d(2)),
        *block(32, 64, nn.MaxPool2d(2)),
        *block(64, 128, nn.MaxPool2d(2)),
        *[nn.Flatten(), nn.Linear(2048, 128, bias=False)],
    )


def lenet_decoder():
    """Of its autoencoder."""
    return nn.Sequential(
        *[nn.LeakyReLU(0.01), nn.Unflatten(1, (8, 4, 4))],
        *block(8, 128, nn.Upsample(scale_factor=2)),
        *block(128, 64, nn.Upsample(scale_factor=2)),
        *block(64, 32, nn.Upsample(scale_factor=2)),
        *[nn.Conv2d(32, 3, 5, padding=2, bias=False), nn.BatchNorm2d(3, 1e-4), nn.Sigmoid()],
    )


def autoencoder_step(x, networks, decay=0.0):
    """The loss of CAE-OC-SVM's autoencoder, or that of Deep SVDD's."""
    error = (networks[1](networks[0](x)).float() - x) ** 2
    return error.mean() if not decay else error.sum() / len(x) + l2(networks, decay)


def l2(networks, decay):
    """The penalty of the kernels."""
    weights = [w for network in networks for w in network.parameters() if w.ndim > 1]
    return decay / 2 * sum((w**2).sum() for w in weights)


def dagmm_step(x, networks):
    """Reconstruction, energies and the covariances' penalty."""
    code = networks[0](x).float()
    decoded = networks[1](code).float()
    flat, flat_decoded = x.flatten(1), decoded.flatten(1)
    distance = (flat - flat_decoded).norm(dim=1) / flat.norm(dim=1)
    cosine = F.cosine_similarity(flat, flat_decoded)
    z = torch.cat([code, distance[:, None], cosine[:, None]], 1)
    density, penalty = 0.0, 0.0
    for gamma in networks[2](z).float().T:
        mean = gamma @ z / gamma.sum()
        centred = z - mean
        covariance = (gamma[:, None] * centred).T @ centred / gamma.sum() + 1e-3 * torch.eye(7)
        exponent = -0.5 * ((centred @ torch.linalg.inv(covariance)) * centred).sum(1)
        root = torch.sqrt(torch.linalg.det(2 * math.pi * covariance) + 1e-7)
        density = density + gamma.mean() * torch.exp(exponent) / root + 1e-7
        penalty = penalty + (1 / covariance.diagonal()).sum()
    return ((x - decoded) ** 2).mean() - 0.01 * torch.log(density).mean() + 5e-4 * penalty


def dsebm_step(x, networks):
    """Denoising by a step down the energy's gradient."""
    noisy = (x + 0.5 * torch.randn_like(x)).requires_grad_()
    energy = 0.5 * ((noisy - networks[1]) ** 2).sum() - networks[0](noisy).float().sum()
    (slope,) = torch.autograd.grad(energy, noisy, create_graph=True)
    return ((noisy - slope - x) ** 2).mean()


class ADGANStep:
    """Two steps of the critic, one of the generator."""

    def __init__(self):
        self.critic, self.generator = encoder(1), decoder(256)
        self.adams = [
            torch.optim.Adam(network.parameters(), 1e-4, betas=(0.0, 0.9))
            for network in (self.critic, self.generator)
        ]

    def __call__(self, x):
        for _ in range(2):
            self.generator.eval()
            with torch.no_grad():
                fake = self.generator(torch.randn(len(x), 256)).float()
            self.generator.train()
            share = torch.rand(len(x), 1, 1, 1)
            mixed = (share * x + (1 - share) * fake).requires_grad_()
            outputs = self.critic(mixed).float().sum()
            (slope,) = torch.autograd.grad(outputs, mixed, create_graph=True)
            penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
            loss = self.critic(fake).float().mean() - self.critic(x).float().mean() + 20 * penalty
            self.update(0, loss)
        self.update(1, -self.critic(self.generator(torch.randn(len(x), 256))).float().mean())

    def update(self, index, loss):
        """A step of one of the two optimisers."""
        weights = (self.critic, self.generator)[index].parameters()
        gradients = torch.autograd.grad(loss, [*weights])
        for group in self.adams[index].param_groups:
            for weight, gradient in zip(group["params"], gradients, strict=True):
                weight.grad = gradient
        self.adams[index].step()


def create(method):
    """(batch size, a function of a batch that makes a step)."""
    if method == "adgan":
        return 128, ADGANStep()
    image = nn.Parameter(torch.zeros(3, 32, 32))
    estimator = nn.Sequential(
        *[nn.Linear(7, 64), nn.Tanh(), nn.Dropout(0.5)],
        *[nn.Linear(64, 10), nn.Tanh(), nn.Dropout(0.5)],
        *[nn.Linear(10, 3), nn.Softmax(1)],
    )
    batch, loss_of, networks = {
        "cae_ocsvm": (128, autoencoder_step, [encoder(256, nn.Tanh()), decoder(256)]),
        "dagmm": (256, dagmm_step, [encoder(5), decoder(5), estimator]),
        "dsebm": (128, dsebm_step, [encoder(256, nn.ReLU()), image]),
        "autoencoder": (
            200,
            lambda x, networks: autoencoder_step(x, networks, 1e-6),
            [lenet(), lenet_decoder()],
        ),
        "deep_svdd": (
            200,
            lambda x, networks: (
                ((networks[0](x).float() - 0.1) ** 2).sum() / len(x) + l2(networks, 1e-6)
            ),
            [lenet()],
        ),
    }[method]
    weights = [
        weight
        for each in networks
        for weight in ([each] if isinstance(each, nn.Parameter) else each.parameters())
    ]
    adam = torch.optim.Adam(weights, 1e-3)

    def step(x):
        adam.zero_grad()
        loss_of(x, networks).backward()
        adam.step()

    return batch, step


def main() -> None:
    """Answer until standard input ends."""
    precision, threads, warm_up, steps, method = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    torch.set_num_threads(threads)
    clock = time.process_time if "--processor-time" in sys.argv else time.perf_counter
    batch, step = create(method)
    x = (2 * torch.rand(batch, 3, 32, 32) - 1).to(memory_format=torch.channels_last)
    for _ in sys.stdin:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            for _ in range(warm_up):
                step(x)
            start = clock()
            for _ in range(steps):
                step(x)
        print((clock() - start) / steps, flush=True)


if __name__ == "__main__":
    main()

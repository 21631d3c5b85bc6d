"""The other side of `benchmarks.training_step`: WRN-10-4 written plainly in PyTorch.

    python benchmarks/torch_step.py {float32,bfloat16} THREADS WARM_UP STEPS [--compile]

Needs PyTorch alone. For every line on standard input it trains on a fixed batch of 128, WARM_UP
steps and STEPS more, and answers with the seconds that each of these took. Images are
channels_last; autocast computes the convolutions in bfloat16, the last layer and the loss are in
float32, as in the project's network.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-activation block whose shortcut is a 1x1 convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        x = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(x)))) + self.shortcut(x)


def main() -> None:
    """Answer until standard input ends."""
    precision, threads, warm_up, steps = sys.argv[1], *map(int, sys.argv[2:5])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    features = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        Block(16, 64, 1),
        Block(64, 128, 2),
        Block(128, 256, 2),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
    ).to(device, memory_format=torch.channels_last)
    head = nn.Linear(256, 72).to(device)
    weights = [*features.parameters(), *head.parameters()]
    adam = torch.optim.Adam(weights, 1e-3)
    x = torch.rand(128, 3, 32, 32).to(device, memory_format=torch.channels_last)
    t = torch.randint(0, 72, (128,)).to(device)
    compiled = torch.compile(features) if "--compile" in sys.argv else features

    def step():
        adam.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            x_features = compiled(x)
        loss = F.cross_entropy(head(x_features.float()), t)
        loss = loss + 2.5e-4 * sum((weight**2).sum() for weight in weights)
        loss.backward()
        adam.step()
        return loss.item()

    for _ in sys.stdin:
        for _ in range(warm_up):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        print((time.perf_counter() - start) / steps, flush=True)


if __name__ == "__main__":
    main()

"""The siamese networks of model.py in PyTorch, with their training step, to be measured against.

The fastest settings found: both images in one pass, channels last, Adam in one kernel.
"""

import contextlib
import math

import torch
from torch import nn


class Siamese(nn.Module):
    """(image1, image2), uint8 [n, height, width, channels] each -> logits [n]."""

    def __init__(self, config):
        super().__init__()
        options = config.model
        self.encoder = CNN(options) if options.encoder == "cnn" else ResNet(options)
        size = options.width * 2 ** (len(options.stage_sizes) - 1)
        self.head = {"mlp": lambda: MLP(size, options.head_features), "cosine": Cosine}[
            options.head
        ]()

    def forward(self, image1, image2):
        return self.head(*self.encode(torch.cat([image1, image2])).chunk(2))

    def encode(self, images):
        return self.encoder(images.permute(0, 3, 1, 2).float() / 255).mean(dim=(2, 3))


class MLP(nn.Module):
    def __init__(self, size, features):
        super().__init__()
        self.hidden, self.logit = nn.Linear(size, features), nn.Linear(features, 1)

    def forward(self, features1, features2):
        return self.logit(self.hidden((features1 - features2).abs()).relu()).squeeze(-1)


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10)))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, features1, features2):
        cosine = nn.functional.cosine_similarity(features1, features2)
        return self.log_scale.exp() * (cosine - self.threshold)


class CNN(nn.Module):
    def __init__(self, options):
        super().__init__()
        widths = [options.width * 2**i for i, n in enumerate(options.stage_sizes) for _ in range(n)]
        strides = [2 if i == 0 else 1 for n in options.stage_sizes for i in range(n)]
        inputs = [1, *widths]
        layers = zip(inputs, widths, strides, strict=False)
        self.Conv = nn.ModuleList(nn.Conv2d(i, o, s + 2, s, 1, bias=False) for i, o, s in layers)
        self.BatchNorm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def forward(self, x):
        for conv, norm in zip(self.Conv, self.BatchNorm, strict=True):
            x = norm(conv(x)).relu()
        return x


class ResNet(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.small = options.encoder == "resnet18_small"
        kernel, stride = (3, 1) if self.small else (7, 2)
        self.conv1 = nn.Conv2d(3, options.width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(options.width)
        self.stages, width = len(options.stage_sizes), options.width
        for stage, blocks in enumerate(options.stage_sizes):
            layer = [BasicBlock(width if i or not stage else width // 2, width, stage and not i)
                     for i in range(blocks)]  # fmt: skip
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            width *= 2

    def forward(self, x):
        x = self.bn1(self.conv1(x.expand(-1, 3, -1, -1))).relu()
        x = x if self.small else nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, halves):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if halves else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(*shortcut) if halves else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (self.downsample(x) + y).relu()


def prepare(config, arrays, compiled):
    """Returns train_step(image1, image2, label) -> loss, gradient_norm() of the step before,
    evaluate(pairs) -> logits and place(batch).

    arrays: the weights, {PyTorch's name: array}.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Siamese(config)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            shape = arrays[f"{name}.weight"].shape
            if shape[2] < 3:  # what is missing are the taps that meet nothing but padding
                layer.weight, layer.padding = nn.Parameter(torch.empty(shape)), 0
    missing, unexpected = network.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False
    )
    assert not unexpected and all("num_batches_tracked" in name for name in missing)
    network = network.to(device, memory_format=torch.channels_last)
    options = config.optimizer
    scale = config.batch_size / options.nominal_batch_size
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=options.learning_rate,
        betas=(options.momentum, options.beta2),
        weight_decay=options.weight_decay * scale,
        fused=True,
    )
    half = config.model.dtype == "bfloat16"
    precision = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
    forward = torch.compile(network) if compiled else network

    def train_step(image1, image2, label):
        network.train()
        with precision:
            logits = forward(image1, image2)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def gradient_norm():
        return torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])

    @torch.inference_mode()
    def evaluate(pairs):
        network.eval()
        with precision:
            images = torch.from_numpy(pairs.images).to(device).split(256)
            features = torch.cat([network.encode(block) for block in images])
            rows = (torch.from_numpy(one).to(device).split(4096) for one in pairs[1:3])
            logits = [network.head(features[i], features[j]) for i, j in zip(*rows, strict=True)]
        return torch.cat(logits).float().cpu().numpy()

    def place(batch):
        return [torch.from_numpy(field).to(device) for field in batch[:3]]

    return train_step, gradient_norm, evaluate, place

"""Model files that go wrong, each with what the sentence about it must say: for the tests of loading and of the trial."""

from __future__ import annotations

from textwrap import indent

FC = "self.fc = nn.Linear(4, num_outputs)\n"
_HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def network(forward: str, init: str = FC, signature: str = "self, num_outputs") -> str:
    """Return the source of a class Net; `forward` are the lines of its forward, where `h` are the samples, flattened."""
    return (
        _HEAD + f"class Net(nn.Module):\n    def __init__({signature}):\n        super().__init__()\n"
        f"{indent(init.rstrip(), ' ' * 8)}\n    def forward(self, x):\n        h = x.flatten(1)\n{indent(forward, ' ' * 8)}\n"
    )


# what is found by its text alone: (source, name, what the sentence says)
UNREADABLE = {
    "syntax error": ("class Net(:\n    pass\n", "Net", r"net\.py:1: .*`class Net\(:`"),
    "tabs and spaces": ("def f():\n\tif 1:\n        pass\n", "Net", r"net\.py:3: inconsistent use of tabs"),
    "no class": ("from torch import nn\nclass Nett(nn.Module): pass\n", "Net", r"has no Net\. Did you mean .*net\.py:Nett\?"),
    "nothing in it": ("", "Net", r"has no Net\..*defines nothing"),
    "null bytes": ("x = 1\0\n", "Net", "null bytes"),
    "another encoding": (b"x = '\xff\xfe'\nclass Net: pass\n", "Net", r"net\.py:1: .*utf-8"),
    "nested too deep": ("(" * 5000 + ")" * 5000, "Net", r"cannot be loaded: net\.py"),
    "a notebook": ('{"cells": [], "metadata": {"a": null}', "Net", r"net\.py:1: .*never closed"),
}

# what is found by running it
UNLOADABLE = {
    "calls sys.exit": (
        "import sys\nclass Net: pass\nsys.exit('usage')\n",
        r"net\.py:3: `sys\.exit\('usage'\)` ends the program",
    ),
    "raises at import": (
        "class Net: pass\nratio = 1 / 0\n",
        r"ZeroDivisionError: division by zero \(net\.py:2: `ratio = 1 / 0`\)",
    ),
    "needs what is not there": ("import nonexistent_thing\nclass Net: pass\n", "needs the module nonexistent_thing"),
    "endless recursion": ("def f(): f()\nclass Net: pass\nf()\n", "RecursionError"),
    "a relative import of nothing": ("from .blocks import Block as Net\n", r"needs the module \.blocks"),
    "no longer there": ("class Net: pass\ndel Net\n", "has no Net"),
    "a number": ("Net = 3\n", "is of type int and cannot be called"),
    "text": ("Net = 'resnet18'\n", "is of type str and cannot be called"),
    "a module": ("import json as Net\n", "is of type module and cannot be called"),
}

# what is found by building it, and by one look at two samples: (source, what the sentence says)
UNBUILDABLE = {
    "a network already made": (_HEAD + "Net = nn.Linear(4, 3)\n", "is a network that is already made"),
    "no network": ("class Net:\n    pass\n", "gives a Net when it is called, and not a torch.nn.Module"),
    "a function of nothing": ("def Net(): pass\n", "gives a NoneType"),
    "an argument that nobody gives": (
        network("return self.fc(h)", signature="self, num_outputs, width"),
        "needs the argument width",
    ),
    "raises in its constructor": (
        network("return h", "assert num_outputs == 7, 'seven'"),
        r"AssertionError: seven \(net\.py:7",
    ),
    "no super().__init__": (network("return h").replace("super().__init__()", "pass"), "AttributeError: cannot assign module"),
    "a fixed width": (network("return self.fc(h)", "self.fc = nn.Linear(4, 10)"), r"shape \(2, 10\), and not \(2, 3\)"),
    "takes other samples": (network("return self.fc(h)", "self.fc = nn.Linear(9, num_outputs)"), r"\(2, 4\).*mat1 and mat2"),
    "no batch axis": (network("return self.fc(h)[0]"), r"shape \(3,\), and not \(2, 3\)"),
    "a dictionary": (network("return {'logits': self.fc(h)}"), "answers with a dict of 1"),
    "three tensors": (network("return self.fc(h), h, h"), "answers with a tuple of 3"),
    "nothing": (network("self.fc(h)"), "answers with a NoneType"),
    "labels": (network("return self.fc(h).long()"), "answers with int64 scores"),
    "a forward that raises": (
        network("return self.missing(h)"),
        r"AttributeError: .*missing.*net\.py:10: `return self\.missing\(h\)`",
    ),
    "no forward": (_HEAD + "class Net(nn.Module):\n    pass\n", "NotImplementedError"),
    "features of one sample": (network("return self.fc(h), h[0]"), r"features of shape \(4,\)"),
}

# what the trial before training finds: (source, what the sentence says)
UNFIT = {
    "NaN": (network("return self.fc(h) * float('nan')"), r"gives 15 of 15 scores that are not finite, in evaluation mode"),
    "infinite in training": (
        network("s = self.fc(h)\nreturn s / 0 if self.training else s"),
        "scores that are not finite, in training mode",
    ),
    "no weights": (network("return h[:, :3]", "pass"), "has no weights that learn"),
    "frozen weights": (
        network("return self.fc(h)", "self.fc = nn.Linear(4, num_outputs).requires_grad_(False)"),
        "has no weights that learn",
    ),
    "detached": (network("return self.fc(h).detach()"), "has no weights that learn: .*Do not detach"),
    "weights of no use": (network("return h[:, :3] * h.clone().requires_grad_()[:, :3]"), "has no weights that learn"),
    "another answer in training": (
        network("s = self.fc(h)\nreturn {'s': s} if self.training else s"),
        "answers otherwise in training",
    ),
    "an operation in place": (
        network("s = self.fc(h).exp()\ns += s.tanh().exp_()\ns *= 2\nreturn s"),
        "cannot be trained: RuntimeError: .*inplace",
    ),
    "dropout that is always on": (
        network("return self.fc(F.dropout(h, 0.5, training=True))"),
        r"not deterministic in evaluation mode.*nn\.functional\.dropout \(net\.py:10: `return self\.fc",
    ),
    "random numbers": (
        network("noise = torch.randn_like(h)\nreturn self.fc(h + noise)"),
        r"not deterministic .*randn_like \(net\.py:10: `noise = ",
    ),
    "a count of its own calls": (
        network("self.calls += 1\nreturn self.fc(h)", FC + "self.register_buffer('calls', torch.zeros(()))"),
        "changes its buffer calls in evaluation mode",
    ),
    "the mean of the batch": (
        network("h = h - h.mean(0)\nreturn self.fc(h)"),
        r"mixes the samples of a batch: .*mean \(net\.py:10: `h = h - h\.mean\(0\)`\)",
    ),
    "BatchNorm of the batch": (
        network("return self.fc(self.bn(h))", FC + "self.bn = nn.BatchNorm1d(4, track_running_stats=False)"),
        r"mixes the samples of a batch: .*batch_norm \(net\.py:11",
    ),
    "softmax over the batch": (network("return self.fc(h).softmax(0)"), r"mixes the samples .*softmax \(net\.py:10"),
    "a batch of one": (network("return self.fc(h).squeeze()"), "cannot answer a single sample"),
    "control flow by values": (
        network("if h.sum() > 0:\n    return self.fc(h)\nreturn self.fc(h) * 1.0"),
        r"torch\.export cannot capture `if h\.sum\(\) > 0:` \(net\.py:10\)",
    ),
    "a number of a tensor": (
        network("return self.fc(h) * float(x.float().max().item() > -1e9)"),
        r"cannot be exported: .*net\.py:10",
    ),
    "a batch of its own": (network("return self.fc(h.reshape(len(h) // 1, 4)[: 5])"), "cannot be exported|ONNX"),
    "an operator that ONNX lacks": (
        network("return self.fc(h) + torch.linalg.eigvals(torch.einsum('bi,bj->bij', h, h)).real[:, :3]"),
        r"the operator aten\.linalg_eig\w* has no translation .net\.py:10: `return",
    ),
    "numpy in the middle": (
        network("return torch.from_numpy(h.detach().numpy()) @ self.fc.weight.T"),
        r"cannot be exported|net\.py:10",
    ),
    "weights by another generator": (
        network("return self.fc(h)", FC + "self.fc.weight.data *= random.random()").replace(
            "import torch\n", "import random, torch\n"
        ),
        r"other weights when it is built again from the same seed \(fc\.weight\)",
    ),
}

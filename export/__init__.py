"""From a run folder to TorchScript, ONNX and .pt2 files, and the proof that they predict as torch does."""

"""Exported files at work: answers from an .onnx file alone, with numpy, Pillow, pyarrow and onnxruntime. No torch."""

"""A proven ONNX file as a web page that answers by itself, in the browser, with onnxruntime-web."""

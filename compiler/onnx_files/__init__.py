"""Models as .onnx files: export, parity with the model, sessions."""

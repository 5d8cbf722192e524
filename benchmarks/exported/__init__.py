"""Networks as torch exports them: forward, gradients and plans beside torch and onnxruntime."""

"""Where the network runs: OpenVINO on a CPU, CUDA graphs on a GPU, plain torch in training."""

"""Rounds that run on the device alone: static buffers, CUDA graphs, one copy to the host."""

"""Triton kernels, each beside its plain-PyTorch reference.

The folder above is not a package on purpose: a top-level package named `kernels` would shadow the PyPI
package of that name, which transformers imports when it is installed.
"""
